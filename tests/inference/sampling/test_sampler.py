"""A sample is a function of (seed, sample, position), from the model's distribution."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from charjax.errors import InputError
from charjax.inference.options import Sampling
from charjax.inference.sampling import groups
from charjax.inference.sampling import sampler as module
from charjax.inference.sampling.groups import packing_library, sample_groups
from charjax.inference.sampling.loop import compiled_loop
from charjax.inference.sampling.sampler import Sampler, sample
from charjax.model.carry import initial_carry
from tests.inference.scripted import chain, memoryless, random_model
from tests.model.small import apply

START = np.array([0], np.int32)


def ids_of(model, *, prompt=START, num_chars=300, num_samples=1, masked=None, **sampling):
    """The samples as one array [num_samples, num_chars]."""
    groups = sample(
        *model,
        prompt,
        num_chars=num_chars,
        num_samples=num_samples,
        sampling=Sampling(**sampling),
        masked=masked,
    )
    return np.concatenate([np.concatenate(list(group), axis=1) for group in groups])


def logits_after(model, text):
    """The network's logits after every character of a text."""
    padded = np.zeros((1, 400), np.int32)  # of one length, to be compiled once
    padded[0, : len(text)] = text
    return np.asarray(apply(*model, padded, initial_carry(model[0], 1))[0][0, : len(text)])


def chi_square(counts, probs):
    expected = np.asarray(probs) * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


RANDOM = random_model(11)
WITH_XLA = replace(RANDOM[0], recurrence="xla"), RANDOM[1]  # without the packed C matmul

# Greedy


@pytest.mark.parametrize("length", [1, 2, 130, 300])
def test_greedy_text_is_what_the_network_finds_likeliest(length):
    prompt = np.random.default_rng(length).integers(0, 11, length).astype(np.int32)
    written, *others = ids_of(RANDOM, prompt=prompt, num_chars=40, num_samples=9, temperature=0.0)
    logits = logits_after(RANDOM, np.concatenate([prompt, written[:-1]]))[length - 1 :]
    np.testing.assert_array_equal(written, logits.argmax(1))
    assert len(set(written)) > 1
    assert all((other == written).all() for other in others)


def test_greedy_takes_the_first_of_equal_logits():
    written = ids_of(memoryless([0, 3, 3, 1]), temperature=0.0)
    assert (written == 1).all()


# Invariant 1: a sample is a function of (seed, sample, position)


@pytest.mark.parametrize("model", [RANDOM, WITH_XLA], ids=["fast", "xla"])
def test_a_sample_does_not_depend_on_how_many_are_asked_for(model):
    # With XLA's matmul, a sample is in the same group, hence in the same program, in any number.
    many = ids_of(model, num_samples=17)
    assert len({row.tobytes() for row in many}) == 17
    for fewer in (1, 3, 8, 9):
        np.testing.assert_array_equal(ids_of(model, num_samples=fewer), many[:fewer])


AS_FOR_USERS = ("float32", "fast", 1.0)


@pytest.mark.parametrize(
    ("dtype", "recurrence", "top_p"),
    [
        ("int8", "xla", 1.0),
        ("int8", "fast", 1.0),
        ("float32", "fast", 1.0),
        ("bfloat16", "fast", 1.0),
        ("float32", "fast", 0.9),
    ],
)
def test_batch_invariant_matmuls_need_no_fixed_groups(dtype, recurrence, top_p, request):
    """A text depends neither on the size of its group nor on the format of the weights.

    Packed matmuls give each sequence the same bits in any batch. int8 matmuls are exact, but with
    XLA's loop the format may change a bit of the cell.
    """
    config, params = random_model(11, hidden=50)
    model = replace(config, dtype=dtype, recurrence=recurrence), params
    if recurrence == "fast" and packing_library(model[0]) is None:
        pytest.skip("no C kernels here")
    # As for users with the C kernels; the other cases differ in the matmul's dtype, which
    # test_c_packed.py and test_decode.py hold to the same bits, and with XLA's loop a text is in
    # the same group whatever the number of texts.
    sizes = (1, 7, 64)
    if (dtype, recurrence, top_p) == AS_FOR_USERS:
        request.getfixturevalue("optimized")
        sizes = (1, 64)  # two seconds to compile each
    many = ids_of(model, num_samples=66, num_chars=100, top_p=top_p)
    for fewer in sizes:
        written = ids_of(model, num_samples=fewer, num_chars=100, top_p=top_p)
        np.testing.assert_array_equal(written, many[:fewer])
    assert list(sample_groups(WITH_XLA[0], 7)) == [(0, 5), (5, 11)]
    if recurrence == "fast":
        assert list(sample_groups(model[0], 66)) == [(0, 64), (64, 64)]
        assert list(sample_groups(model[0], 7)) == [(0, 7)]


def test_other_matmuls_sample_the_same(monkeypatch):
    # Not guaranteed, since matmuls may round differently; but nearly always, and here.
    packed = ids_of(RANDOM, num_samples=6, num_chars=40)
    for feature_major_from in (1, 1000):
        monkeypatch.setattr(groups, "_MIN_FEATURE_MAJOR", feature_major_from)
        with_xla = ids_of(WITH_XLA, num_samples=6, num_chars=40)
        np.testing.assert_array_equal(with_xla, packed)


def test_a_shorter_sample_is_the_beginning_of_a_longer_one():
    longer = ids_of(RANDOM, num_chars=300)
    for chars in (1, 50, 128, 129):
        np.testing.assert_array_equal(ids_of(RANDOM, num_chars=chars), longer[:, :chars])


@pytest.mark.parametrize(("bound", "value"), [("_CHUNK", 7), ("_MAX_NOISE", 70)])
def test_a_sample_does_not_depend_on_the_chunks(monkeypatch, bound, value):
    options = {"prompt": np.arange(10, dtype=np.int32), "num_chars": 60, "num_samples": 5}
    whole = ids_of(RANDOM, **options)
    monkeypatch.setattr(groups, bound, value)
    np.testing.assert_array_equal(ids_of(RANDOM, **options), whole)


def test_a_position_is_counted_from_the_end_of_the_prompt():
    # A model without memory writes the same whatever it has read before.
    model = memoryless([0.1, 0.2, 0.3])
    once = ids_of(model)
    for length in (2, 129, 200):
        np.testing.assert_array_equal(ids_of(model, prompt=np.zeros(length, np.int32)), once)


def test_a_sampler_may_be_called_again():
    sampler = Sampler(*RANDOM, masked=3)
    wanted = ids_of(RANDOM, num_chars=30, num_samples=7, masked=3)
    for _ in range(2):
        groups = sampler(START, num_chars=30, num_samples=7, sampling=Sampling())
        written = np.concatenate([np.concatenate(list(group), axis=1) for group in groups])
        np.testing.assert_array_equal(written, wanted)


def test_weights_are_rearranged_once_for_each_format(monkeypatch):
    formats, weights_in_format = [], module.weights_in_format

    def rearrange(config, masked, group_format, params):
        formats.append(group_format)
        return weights_in_format(config, masked, group_format, params)

    monkeypatch.setattr(module, "weights_in_format", rearrange)
    sampler = Sampler(*WITH_XLA, masked=None)
    for _ in range(2):
        for group in sampler(START, num_chars=1, num_samples=70, sampling=Sampling()):
            list(group)
    assert [of.layout for of in formats] == ["batch_major", "feature_major"]


def test_seeds_differ():
    texts = [ids_of(RANDOM, seed=seed).tobytes() for seed in (0, 1, 2**31, 2**32 - 1)]
    assert len(set(texts)) == len(texts)


def test_groups_may_be_read_in_any_order():
    groups = list(
        sample(*RANDOM, START, num_chars=20, num_samples=11, sampling=Sampling(), masked=None)
    )
    backwards = [np.concatenate(list(group), axis=1) for group in reversed(groups)]
    np.testing.assert_array_equal(
        np.concatenate(backwards[::-1]), ids_of(RANDOM, num_chars=20, num_samples=11)
    )


@pytest.mark.parametrize("sizes", [(5, 11, 48, 64), (64, 256), (1,), (3, 5)])
def test_groups_follow_each_other_and_do_not_depend_on_the_number(monkeypatch, sizes):
    monkeypatch.setattr(groups, "_CPU_GROUP_SIZES", sizes)
    many = list(sample_groups(WITH_XLA[0], 1000))
    ends = [first + size for first, size in many]
    assert [first for first, _ in many] == [0, *ends[:-1]]
    assert max(size for _, size in many) == max(sizes)
    for fewer in (1, 2, 64, 65, 999):
        found = list(sample_groups(WITH_XLA[0], fewer))
        assert found == many[: len(found)]
        assert sum(size for _, size in found[:-1]) < fewer <= sum(size for _, size in found)


# The distribution

# Of 3 tokens: a statistic of 2 degrees of freedom exceeds 30 once in 3 million seeds.
UNLIKELY = 30
PROBS = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.05, 0.8, 0.15]])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_transitions_have_the_models_probabilities_at_the_temperature(temperature):
    written = ids_of(chain(np.log(PROBS)), num_chars=2000, num_samples=8, temperature=temperature)
    counts = np.zeros((3, 3))
    np.add.at(counts, (written[:, :-1].ravel(), written[:, 1:].ravel()), 1)
    tempered = PROBS ** (1 / temperature)
    for row, probs in zip(counts, tempered / tempered.sum(1, keepdims=True), strict=True):
        assert chi_square(row, probs) < UNLIKELY


def test_samples_are_independent_of_each_other():
    first, second = ids_of(memoryless(np.log(PROBS[0])), num_chars=5000, num_samples=2)
    pairs = np.bincount(3 * first + second, minlength=9)
    # 8 degrees of freedom: above 45 once in 3 million seeds.
    assert chi_square(pairs, np.outer(PROBS[0], PROBS[0]).ravel()) < 45


@pytest.mark.parametrize("temperature", [1e30, 3e38, 1e39, 1e300])
def test_a_huge_temperature_is_uniform_over_what_may_be_written(temperature):
    model = memoryless([5.0, 0.0, -5.0, 9.0])
    written = ids_of(model, num_chars=1500, masked=3, temperature=temperature)
    counts = np.bincount(written[0], minlength=4)
    assert counts[3] == 0
    assert chi_square(counts[:3], np.full(3, 1 / 3)) < UNLIKELY


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("knobs", [{}, {"top_k": 2}, {"top_p": 0.9}])
def test_a_masked_token_is_never_sampled(temperature, knobs):
    model = memoryless([1.0, 2.0, 0.0, 99.0])
    written = ids_of(model, num_samples=8, masked=3, temperature=temperature, **knobs)
    assert (written < 3).all()


# top_k and top_p


@pytest.mark.parametrize("k", [1, 3])
def test_top_k_writes_the_k_likeliest(k):
    model = memoryless([0.0, 0.4, 0.1, 0.3, 0.2])
    written = ids_of(model, num_samples=8, top_k=k)
    assert set(written.ravel()) == set([1, 3, 4, 2, 0][:k])


@pytest.mark.parametrize("k", [11, 10**6])
def test_top_k_of_everything_changes_nothing(k):
    np.testing.assert_array_equal(ids_of(RANDOM, top_k=k), ids_of(RANDOM))


@pytest.mark.parametrize(
    "options",
    [
        *[{"temperature": 1e-3}, {"temperature": 1e-30}, {"temperature": 5e-324}],
        *[{"top_k": 1}, {"top_p": 1e-6}, {"top_p": 1e-60}],
    ],
)
def test_a_tiny_temperature_and_the_smallest_top_k_and_top_p_are_greedy(options):
    greedy = ids_of(RANDOM, temperature=0.0)
    np.testing.assert_array_equal(ids_of(RANDOM, **options), greedy)


@pytest.mark.parametrize(
    ("p", "temperature", "kept"),
    [
        *[(0.3, 1.0, {1}), (0.45, 1.0, {1, 2}), (0.75, 1.0, {1, 2, 3}), (0.95, 1.0, {0, 1, 2, 3})],
        # At temperature 1/2 the squares count: 1, 16, 9 and 4, over 30.
        *[(0.5, 0.5, {1}), (0.75, 0.5, {1, 2})],
    ],
)
def test_top_p_writes_the_smallest_set_of_that_probability(p, temperature, kept):
    model = memoryless(np.log([0.1, 0.4, 0.3, 0.2]))
    written = ids_of(model, num_samples=8, top_p=p, temperature=temperature)
    assert set(written.ravel()) == kept


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("prompt", [[1, 2], *(np.array([1, 2], t) for t in ("u1", "i8", "u4"))])
def test_a_prompt_is_continued_whatever_the_dtype_of_its_ids(prompt):
    want = ids_of(RANDOM, prompt=np.array([1, 2], np.int32), num_chars=5)
    np.testing.assert_array_equal(ids_of(RANDOM, prompt=prompt, num_chars=5), want)


# Errors and compilations


def prompt_of(*ids):
    return {"prompt": np.array(ids)}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[({"num_chars": value}, f"--num_chars={value}: ") for value in (-1, 10**10, 2.5)],
        *[({"num_samples": value}, f"--num_samples={value}: ") for value in (0, 10**7, 1.0)],
        *[(prompt_of(0, wrong), f"id {wrong}: the model has 11 tokens") for wrong in (-1, 99)],
        *[({"masked": wrong}, f"id {wrong}: the model has 11 tokens") for wrong in (-1, 11)],
        (prompt_of([0], [1]), r"token ids of shape \(2, 1\): "),
        (prompt_of(0, 1.5), "token ids of dtype float64: must be integers"),
        ({"prompt": np.empty(0, np.int32)}, "the prompt is empty: "),
    ],
)
def test_what_cannot_be_sampled_is_refused(options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        ids_of(RANDOM, **options)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("auto", "dtype=auto: .*charjax.resolve_dtype"),
        ("float16", "config.model.dtype='float16': must be one of float32"),
    ],
)
def test_a_dtype_that_no_device_runs_is_refused(dtype, message):
    with pytest.raises(InputError, match=f"^{message}"):
        ids_of((replace(RANDOM[0], dtype=dtype), RANDOM[1]))


def test_samples_are_the_same_where_jax_has_float64():
    with jax.enable_x64(True):
        samples = ids_of(RANDOM, num_chars=20)
    np.testing.assert_array_equal(samples, ids_of(RANDOM, num_chars=20))


def test_changed_options_do_not_recompile():
    ids_of(RANDOM, temperature=0.5, top_p=0.5, num_samples=9)
    compiled = compiled_loop()._cache_size()
    ids_of(RANDOM, temperature=0.0, top_p=0.9, seed=3, num_samples=9, num_chars=700)
    ids_of(RANDOM, temperature=3.0, top_p=0.1, prompt=np.zeros(500, np.int32))
    assert compiled_loop()._cache_size() == compiled


def test_no_more_of_the_likeliest_tokens_are_returned_than_the_model_has():
    sampler = Sampler(*memoryless([1.0, 0.0]), masked=None)
    options = {"num_chars": 3, "num_samples": 1, "sampling": Sampling(), "num_top": 5}
    chunks = list(next(sampler.run(START, **options)))
    assert np.concatenate([chunk.top_ids for chunk in chunks], axis=1).tolist() == [[[0, 1]] * 3]
