from __future__ import annotations

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.config import BATCHING_FIELDS, DataConfig
from charjax.data import batches
from charjax.data.batches import BATCHINGS, Batches
from charjax.data.packed.tokens import StoreTokens
from charjax.data.splits import TokenSplit, split
from charjax.errors import InputError

ONE = np.array([0])
MODES = [
    DataConfig(batching="stream", batch_size=3, seq_len=7),
    DataConfig(batching="windows", batch_size=3, seq_len=7),
    DataConfig(batching="windows", batch_size=3, seq_len=7, keep_partial=True),
    DataConfig(batching="sliding", batch_size=3, seq_len=7, stride=2, targets="last"),
]


def mode_name(config: DataConfig) -> str:
    return config.batching + "-partial" * config.keep_partial


def config_of(batching: str, **fields) -> DataConfig:
    return dataclasses.replace(DataConfig(batching=batching, batch_size=3, seq_len=7), **fields)


def make_batches(config: DataConfig, ids, starts, seed: int, boundary=None) -> Batches:
    return batches.make_batches(config, TokenSplit(ids, starts, boundary), seed)


def counting(n: int) -> np.ndarray:
    """Token ids equal to their positions."""
    return np.arange(n, dtype=np.int32)


def epoch_of(batches, epoch: int) -> list:
    first = epoch * batches.steps_per_epoch
    return [batches(first + i) for i in range(batches.steps_per_epoch)]


def window_starts(batches, epoch: int) -> list[int]:
    """The first tokens of all windows that count, in their order."""
    return [int(i) for b in epoch_of(batches, epoch) for i in b.inputs[b.mask[:, -1], 0]]


def assert_equal(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


# Every mode.


def test_the_config_knows_every_mode():
    assert BATCHINGS.keys() == BATCHING_FIELDS.keys()


@pytest.mark.parametrize("config", MODES, ids=mode_name)
def test_shapes_and_types(config):
    batch = make_batches(config, counting(200), ONE, 0)(0)
    for array in batch[:3]:
        assert array.shape == (3, 7)
    assert batch.reset.shape == (3,)
    assert [a.dtype for a in batch] == [np.int32, np.int32, bool, bool]


@pytest.mark.parametrize("config", MODES, ids=mode_name)
def test_targets_follow_inputs(config):
    batches, ids = make_batches(config, counting(200), ONE, 0), counting(200)
    for step in range(3 * batches.steps_per_epoch):
        batch = batches(step)
        np.testing.assert_array_equal(batch.targets, (batch.inputs + 1) % len(ids))


@pytest.mark.parametrize("config", MODES, ids=mode_name)
def test_a_batch_is_a_function_of_the_step_alone(config):
    ids = counting(200)
    forward = make_batches(config, ids, ONE, 7)
    steps = range(3 * forward.steps_per_epoch)
    in_order = [forward(step) for step in steps]
    backward = make_batches(config, ids, ONE, 7)
    for step in reversed(steps):
        assert_equal(backward(step), in_order[step])
    assert_equal(make_batches(config, ids, ONE, 7)(steps[-1]), in_order[-1])


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("config", MODES, ids=mode_name)
def test_the_step_may_be_that_of_a_training_state_and_must_be_an_integer(config):
    batches = make_batches(config, counting(200), ONE, 7)
    for step in (0, batches.steps_per_epoch + 1):
        for number in (jnp.int32(step), np.int64(step)):
            assert_equal(batches(number), batches(step))
    for wrong in (-1, 1.5, "1", None):
        with pytest.raises(InputError, match=f"^step={wrong!r}: must be "):
            batches(wrong)
        with pytest.raises(InputError, match=f"^seed={wrong!r}: must be "):
            make_batches(config, counting(200), ONE, wrong)


@pytest.mark.parametrize("config", MODES, ids=mode_name)
def test_seeds_and_epochs_differ_in_order(config):
    ids = counting(500)

    def second_epoch(seed: int) -> np.ndarray:
        return np.stack([b.inputs for b in epoch_of(make_batches(config, ids, ONE, seed), 1)])

    first = np.stack([b.inputs for b in epoch_of(make_batches(config, ids, ONE, 0), 0)])
    assert not np.array_equal(first, second_epoch(0))
    assert not np.array_equal(second_epoch(0), second_epoch(1))


@pytest.mark.parametrize("config", MODES, ids=mode_name)
@given(n=st.integers(60, 400))
def test_chars_per_epoch_is_what_the_masks_count(config, n):
    batches = make_batches(config, counting(n), ONE, 1)
    for epoch in range(2):
        assert sum(b.mask.sum() for b in epoch_of(batches, epoch)) == batches.chars_per_epoch


@pytest.mark.parametrize("config", MODES, ids=mode_name)
@pytest.mark.parametrize("n", [0, 7])
def test_too_little_text_names_its_length_and_that_of_a_batch(config, n):
    message = (
        rf"has {n} characters, .* takes 22 \(.*batch_size=3 times seq_len=7"
        if config.batching == "stream"
        else rf"has 0 windows of 8 .* document has {n}\), .*batch_size=3"
    )
    with pytest.raises(InputError, match=message):
        make_batches(config, counting(n), ONE[:n], 0)


def test_compact_ids_make_the_same_batches():
    ids = counting(100)
    for config in MODES:
        int32, int8 = (make_batches(config, x, ONE, 0)(1) for x in (ids, ids.astype(np.int8)))
        assert int8.inputs.dtype == np.int32
        assert_equal(int32, int8)


# Streams.


def test_a_row_continues_from_batch_to_batch_within_an_epoch():
    batches = make_batches(config_of("stream"), counting(200), ONE, 0)
    for epoch in range(3):
        steps = epoch_of(batches, epoch)
        assert steps[0].reset.all()
        for batch, following in itertools.pairwise(steps):
            np.testing.assert_array_equal(batch.targets[:, -1], following.inputs[:, 0])
            assert not following.reset.any()


@given(n=st.integers(22, 300), epoch=st.integers(0, 3))
def test_a_stream_reads_no_token_twice_and_leaves_less_than_a_batch(n, epoch):
    batches = make_batches(config_of("stream"), counting(n), ONE, 0)
    read = np.concatenate([b.inputs.ravel() for b in epoch_of(batches, epoch)])
    assert len(set(read.tolist())) == len(read) == batches.chars_per_epoch
    assert n - len(read) <= 3 * 7
    assert batches.num_sequences == 3


def test_the_first_epoch_does_not_go_around_the_end():
    for n in range(22, 90):
        batches = make_batches(config_of("stream"), counting(n), ONE, 0)
        for batch in epoch_of(batches, 0):
            np.testing.assert_array_equal(batch.targets, batch.inputs + 1)


def test_the_first_epoch_begins_at_the_beginning_and_later_ones_read_the_rest():
    n = 2 * 21 + 20  # 20 tokens fill no batch
    batches = make_batches(config_of("stream"), counting(n), ONE, 0)
    epochs = [{int(i) for b in epoch_of(batches, e) for i in b.inputs.ravel()} for e in range(12)]
    assert epochs[0] == set(range(2 * 21))
    # A token stays unread in one epoch with odds of 20/62: in all, 62 * (20/62)**11 < 1e-3.
    assert set().union(*epochs) == set(range(n))


# Windows, disjoint and sliding.

WINDOWED = [
    config_of("windows", keep_partial=True),
    config_of("windows", keep_partial=True, targets="last"),
    config_of("sliding", keep_partial=True, stride=3),
    config_of("sliding", keep_partial=True, stride=11, targets="last"),
]
LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(lambda x: max(x) > 7)


def expected_starts(config: DataConfig, lengths: list[int]) -> list[int]:
    stride = config.stride if config.batching == "sliding" else config.seq_len + 1
    begins = np.cumsum([0, *lengths])
    return [
        int(begin) + i
        for begin, length in zip(begins, lengths, strict=False)
        for i in range(0, length - config.seq_len, stride)
    ]


@pytest.mark.parametrize("config", WINDOWED)
@given(lengths=LENGTHS)
def test_every_epoch_has_each_window_once_and_none_crosses_documents(config, lengths):
    starts = np.cumsum([0, *lengths[:-1]])
    batches = make_batches(config, counting(sum(lengths)), starts, 3)
    expected = expected_starts(config, lengths)
    assert batches.num_sequences == len(expected)
    for epoch in range(2):
        assert sorted(window_starts(batches, epoch)) == expected
    document = np.repeat(np.arange(len(lengths)), lengths)
    for batch in epoch_of(batches, 0):
        whole = np.concatenate([batch.inputs, batch.targets], axis=1)
        assert (document[whole] == document[whole[:, :1]]).all()
        assert batch.reset.all()


def test_an_incomplete_batch_is_dropped_or_padded():
    ids = counting(8 * 7)  # seven windows, three a batch
    dropped = make_batches(config_of("windows"), ids, ONE, 0)
    kept = make_batches(config_of("windows", keep_partial=True), ids, ONE, 0)
    assert (dropped.steps_per_epoch, dropped.chars_per_epoch) == (2, 6 * 7)
    assert (kept.steps_per_epoch, kept.chars_per_epoch) == (3, 7 * 7)
    np.testing.assert_array_equal(kept(2).mask.all(axis=1), [True, False, False])
    assert not kept(2).mask[1:].any()


@pytest.mark.parametrize("batching", ["windows", "sliding"])
def test_stateful_windows_are_the_same_windows_with_the_carry_kept(batching):
    plain, stateful = (
        make_batches(config_of(batching, stateful=kept), counting(100), ONE, 0)
        for kept in (False, True)
    )
    for step in range(2 * plain.steps_per_epoch):
        assert_equal(plain(step)[:3], stateful(step)[:3])
        assert plain(step).reset.all()
        assert not stateful(step).reset.any()


def test_windows_counted_by_the_nietzsche_example():
    config = config_of("sliding", seq_len=60, stride=3, batch_size=128, targets="last")
    batches = make_batches(config, np.zeros(600_893, np.int32), ONE, 0)
    assert batches.num_sequences == 200_278
    assert batches.steps_per_epoch == 200_278 // 128


class VirtualTokens(StoreTokens):
    """As many tokens as one likes, in no memory: each is its position modulo 251."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, positions):
        return (np.asarray(positions) % 251).astype(np.int32)


@pytest.mark.parametrize(
    "config",
    [
        config_of("stream", seq_len=1),
        config_of("windows", seq_len=1),
        config_of("windows", seq_len=1, targets="last", keep_partial=True),
        config_of("sliding", stride=1, targets="last"),
        config_of("sliding", stride=2),
    ],
    ids=lambda config: f"{config.batching}-{config.targets}",
)
def test_more_windows_and_positions_than_32_bits_count(config):
    size, length = 2**33 + 5, config.seq_len
    stride = {"stream": 1, "windows": length + 1, "sliding": config.stride}[config.batching]
    batches = make_batches(config, VirtualTokens(size), ONE, seed=0)
    if config.batching == "stream":
        assert batches.steps_per_epoch == (size - 1) // config.batch_size
    else:
        assert batches.num_sequences == -(-(size - length) // stride) > 2**31
    steps = batches.steps_per_epoch
    assert steps > 2**31 // 3
    found = []
    for step in (0, 1, steps // 2, steps - 2, 3 * steps + 1):
        starts, batch = batches.slices(step, slice(None)).starts, batches(step)
        want = (starts[:, None] + np.arange(length + 1)) % size % 251
        np.testing.assert_array_equal(batch.inputs, want[:, :-1])
        np.testing.assert_array_equal(batch.targets, want[:, 1:])
        assert (starts % stride == 0).all()
        assert (starts >= 0).all()
        assert step >= steps or (starts + length < size).all()
        found.extend((starts % size).tolist())
    assert len(set(found)) == len(found)
    assert max(found) > 2**32


def test_too_few_windows_for_a_batch_names_both_counts():
    with pytest.raises(InputError, match=r"has 2 windows of 8 .*batch_size=3"):
        make_batches(config_of("windows"), counting(16), ONE, 0)


ORDER = [40, 48, 0, 56, 24, 16, 32, 72, 8, 64]
OFFSETS = [0, 215, 950, 747]


def test_the_order_of_a_seed_is_the_same_in_every_release():
    batches = make_batches(config_of("windows", batch_size=5), counting(80), ONE, 42)
    stream = make_batches(config_of("stream"), counting(1000), ONE, 42)
    begins = [int(stream(e * stream.steps_per_epoch).inputs[0, 0]) for e in range(4)]
    message = "data order changed: resumed runs would see other batches; intended?"
    assert window_starts(batches, 0) == ORDER, message
    assert begins == OFFSETS, message


# Splits.


@pytest.mark.parametrize(
    ("fractions", "sizes"),
    [
        ((0.9, 0.1, 0.0), (1_003_854, 111_540, 0)),
        ((0.9, 0.05, 0.05), (1_003_854, 55_770, 55_770)),
        ((0.9, 0.0, 0.1), (1_003_854, 0, 111_540)),
        ((1.0, 0.0, 0.0), (1_115_394, 0, 0)),
        ((0.8, 0.1, 0.1), (892_315, 111_539, 111_540)),
    ],
)
def test_sizes_of_the_splits_of_tiny_shakespeare(fractions, sizes):
    splits = split(np.zeros(1_115_394, np.int32), ONE, fractions)
    assert tuple(len(part.ids) for part in splits) == sizes
    assert [part.document_starts.tolist() for part in splits] == [
        [0] if size else [] for size in sizes
    ]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=2, max_size=30),
    fractions=st.sampled_from([(0.5, 0.5, 0.0), (0.6, 0.2, 0.2), (1.0, 0.0, 0.0)]),
)
def test_documents_are_never_cut_and_never_lost(lengths, fractions):
    ids, starts = counting(sum(lengths)), np.cumsum([0, *lengths[:-1]])
    num_splits = sum(fraction > 0 for fraction in fractions)
    if len(lengths) < num_splits:
        with pytest.raises(InputError, match="is empty"):
            split(ids, starts, fractions)
        return
    splits = split(ids, starts, fractions)
    assert [part.ids.size > 0 for part in splits] == [fraction > 0 for fraction in fractions]
    np.testing.assert_array_equal(np.concatenate([part.ids for part in splits]), ids)
    begins = [part.ids[part.document_starts] for part in splits if part.ids.size]
    np.testing.assert_array_equal(np.concatenate(begins), starts)
    train = len(splits.train.ids)
    boundaries = np.append(starts, len(ids))
    wanted = int(len(ids) * fractions[0])
    leaves_no_split_empty = boundaries[1 : len(boundaries) - num_splits + 1]
    assert abs(train - wanted) == np.abs(leaves_no_split_empty - wanted).min()


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.5, 0.5), (1.5, -0.5, 0.0), (0.0,) * 3])
def test_fractions_that_do_not_add_up_to_1_are_refused(fractions):
    with pytest.raises(InputError, match=r"^config\.data\.split=.*must be three fractions"):
        split(counting(100), ONE, fractions)


@pytest.mark.parametrize("field", [{"batching": "random"}, {"batch_size": 0}, {"seq_len": -1}])
def test_batches_of_a_field_outside_its_limits_are_refused(field):
    ((name, value),) = field.items()
    with pytest.raises(InputError, match=rf"^config\.data\.{name}={value!r}: must be "):
        make_batches(DataConfig(**field), counting(100), ONE, 0)


def test_an_empty_split_is_refused():
    with pytest.raises(
        InputError, match="the test split is empty; the text has 101 characters in 2 documents"
    ):
        split(counting(101), np.array([0, 1]), (0.8, 0.1, 0.1))
    with pytest.raises(InputError, match="the train split is empty; the text has 1 character "):
        split(counting(1), ONE, (0.9, 0.1, 0.0))
