"""Training on a packed text equals training on the same text in memory, batch for batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from charjax.config import Config, DataConfig
from charjax.data.dataset import Dataset, load_dataset
from charjax.data.packed.index import ShardRecord
from charjax.data.packed.tokens import StoreTokens
from charjax.data.shuffle import keyed_order, make_order, resolve_order
from charjax.errors import InputError, StoreError

from ..packing import packed, tiny_shards

SENTENCES = [f"Sentence {i} of the text, {'o' * (i % 7)}{'λ' * (i == 33)}.\n" for i in range(60)]


def write_and_pack(folder: Path, data: DataConfig) -> DataConfig:
    """Writes the text of `data.path`, packs it, and returns the config with the packed text."""
    Path(data.path).write_text("".join(SENTENCES), encoding="utf-8")
    return packed(data, folder / "store")


def assert_equal(one: Dataset, other: Dataset) -> None:
    assert one.vocab == other.vocab
    for name in ("steps_per_epoch", "chars_per_epoch", "num_sequences", "unused_chars"):
        assert getattr(one.batches, name) == getattr(other.batches, name), name
    for split, same in zip(one.splits, other.splits, strict=True):
        np.testing.assert_array_equal(split.ids, np.asarray(same.ids))
        np.testing.assert_array_equal(split.document_starts, same.document_starts)
    steps = [0, 1, 2, 1, one.batches.steps_per_epoch, 7, 8, 3 * one.batches.steps_per_epoch + 1]
    for step in steps:
        for rows in (slice(None), slice(1, 3)):
            for array, same in zip(one.batches(step, rows), other.batches(step, rows), strict=True):
                np.testing.assert_array_equal(array, same, strict=True)


@pytest.fixture(scope="module", params=["none", "lines", "lines without boundary", "lines by hash"])
def texts(request, tmp_path_factory) -> tuple[DataConfig, DataConfig]:
    """The configs of a text in memory and of the same text, packed."""
    folder = tmp_path_factory.mktemp("store")
    data = DataConfig(
        path=str(folder / "a.txt"),
        documents=request.param.split()[0],
        boundary="without" not in request.param,
        split_by="hash" if "hash" in request.param else "position",
        split=(0.7, 0.2, 0.1),
        batch_size=4,
        seq_len=8,
    )
    with tiny_shards():
        return data, write_and_pack(folder, data)


@pytest.mark.parametrize(
    "options",
    [
        {"batching": "stream"},
        {"batching": "windows", "window_order": "table"},
        {"batching": "windows", "window_order": "keyed"},
        {"batching": "sliding", "window_order": "table", "stride": 3},
        {"batching": "sliding", "window_order": "keyed", "stride": 3},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_batches_of_a_packed_text_are_those_of_memory(texts, options):
    with tiny_shards():
        in_memory, of_store = (load_dataset(Config(data=replace(d, **options))) for d in texts)
        assert isinstance(of_store.splits.train.ids, StoreTokens)
        assert_equal(in_memory, of_store)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"documents": "none"}, "config.data.documents='none': .* packed with 'lines'"),
        ({"newlines": "unix"}, "config.data.newlines"),
        ({"shuffle_documents": True}, "keeps its order"),
    ],
)
def test_a_config_that_contradicts_the_packed_text_is_refused(tmp_path, options, message):
    data = DataConfig(path=str(tmp_path / "a.txt"), documents="lines", batch_size=2)
    data = write_and_pack(tmp_path, data)
    with pytest.raises(InputError, match=message):
        load_dataset(Config(data=replace(data, **options)))


def test_a_packed_text_of_an_older_version_has_no_hashes_to_split_by(tmp_path, monkeypatch):
    data = DataConfig(path=str(tmp_path / "a.txt"), documents="lines", batch_size=2)

    def without_hashes(record):
        return to_bytes(record._replace(digests=record.digests._replace(hashes_sha256="")))

    to_bytes = ShardRecord.to_bytes
    monkeypatch.setattr(ShardRecord, "to_bytes", without_hashes)
    data = write_and_pack(tmp_path, data)
    assert load_dataset(Config(data=data)).splits.val.ids.size
    with pytest.raises(InputError, match=r"without the hashes .* pack the text again"):
        load_dataset(Config(data=replace(data, split_by="hash")))


@pytest.mark.parametrize("batching", ["stream", "windows", "sliding"])
def test_a_process_reads_the_tokens_of_its_rows_alone(texts, batching, monkeypatch):
    asked: list[np.ndarray] = []
    loaded: list[set[tuple[int, int]]] = []
    with tiny_shards():
        dataset = load_dataset(Config(data=replace(texts[1], batching=batching)))
        chunks = dataset.splits.train.ids._chunks
        read, load = chunks.read, chunks._chunk

        def spy_read(positions):
            asked.append(positions)
            loaded.append(set())
            return read(positions)

        monkeypatch.setattr(chunks, "read", spy_read)
        monkeypatch.setattr(chunks, "_chunk", lambda *w: loaded[-1].add(w) or load(*w))
        for rows in (slice(0, 4), slice(0, 2), slice(2, 4)):
            dataset.batches._batches(1, rows)  # without those that are read ahead
    whole, *of_processes = asked
    for rows, positions in zip((slice(0, 2), slice(2, 4)), of_processes, strict=True):
        np.testing.assert_array_equal(positions, whole[rows])
    assert loaded[1] | loaded[2] == loaded[0]


def test_no_batch_has_tokens_of_a_damaged_chunk(tmp_path):
    with tiny_shards():
        data = DataConfig(
            path=str(tmp_path / "a.txt"), batch_size=1, seq_len=8, split=(1.0, 0.0, 0.0)
        )
        of_store = write_and_pack(tmp_path, data)
        wanted = load_dataset(Config(data=data)).batches
        (tmp_path / "store" / "tokens" / "00010" / "c" / "0").unlink()
        batches = load_dataset(Config(data=of_store)).batches
        steps = iter(range(batches.steps_per_epoch))
        with pytest.raises(StoreError, match="tokens/00010: damaged"):
            all(np.array_equal(batches(s).inputs, wanted(s).inputs) for s in steps)
        assert 60 < next(steps) < batches.steps_per_epoch


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_a_keyed_order_is_a_permutation_of_its_seed_and_epoch(count):
    orders = [keyed_order(count, seed, epoch, np.arange(count)) for seed, epoch in ((0, 0), (0, 1))]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(count))
    np.testing.assert_array_equal(keyed_order(count, 0, 1, np.arange(count)), orders[1])
    if count > 60:
        assert not np.array_equal(*orders)
        assert abs(np.corrcoef(orders[0], np.arange(count))[0, 1]) < 0.4


def test_the_keyed_order_of_a_seed_is_the_same_in_every_release():
    assert keyed_order(1000, 42, 3, np.arange(6)).tolist() == [217, 316, 115, 690, 275, 211]


def test_a_keyed_order_has_any_number_of_windows():
    count = 2**40 + 12345
    positions = np.random.default_rng(0).integers(count, size=100_000)
    numbers = keyed_order(count, 1, 0, np.unique(positions))
    assert len(np.unique(numbers)) == len(numbers)
    assert numbers.min() >= 0
    assert 2**39 < numbers.max() < count
    assert abs(numbers.mean() / count - 0.5) < 0.01


def test_auto_is_a_table_where_it_is_small():
    assert [resolve_order("auto", n) for n in (1, 1 << 22, (1 << 22) + 1)] == [
        "table",
        "table",
        "keyed",
    ]
    assert make_order("auto", 1 << 40, 0)(0, np.arange(9)).max() > 1 << 36
