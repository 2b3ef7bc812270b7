"""Documents split by a hash: each stays in its split, whatever is added to the text."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.config import Config, DataConfig
from charjax.data.batches import TokenSplit
from charjax.data.dataset import Dataset, load_dataset
from charjax.data.reading.documents import Piece
from charjax.data.splits import split_numbers
from charjax.data.tokens.document_hash import HASHED, DocumentHasher
from charjax.data.tokens.runs import Runs
from charjax.errors import InputError

from .. import packing
from ..packing import tiny_shards

FRACTIONS = (0.7, 0.2, 0.1)


def load(folder: Path, texts: list[str], *, packed: bool = False, **fields) -> Dataset:
    path = folder / "text.txt"
    path.write_text("".join(texts), encoding="utf-8")
    defaults = {"split": FRACTIONS, "split_by": "hash", "documents": "lines", "batch_size": 2}
    data = DataConfig(path=str(path), seq_len=4, **defaults | fields)
    if packed:
        data = packing.packed(data, folder / "store")
    return load_dataset(Config(data=data))


def documents_of(dataset: Dataset, part: TokenSplit) -> list[str]:
    ids = np.asarray(part.ids)
    texts = "".join(["|", *dataset.vocab.characters][i] for i in (ids + 1) % len(dataset.vocab))
    return [text for text in texts.split("|") if text]


LINES = [f"Line {i}{'!' * (i % 9)}\n" for i in range(200)]


@pytest.mark.parametrize("packed", [False, True])
def test_a_document_stays_in_its_split_when_others_are_added(tmp_path, packed):
    with tiny_shards():
        few = load(tmp_path, LINES[::2])
        many = load(tmp_path, random.Random(1).sample(LINES, len(LINES)), packed=packed)
        of_few, of_many = ([documents_of(d, part) for part in d.splits] for d in (few, many))
    for documents, all_documents in zip(of_few, of_many, strict=True):
        assert documents
        assert set(documents) <= set(all_documents)
    found = [document for documents in of_many for document in documents]
    assert sorted(found) == sorted(line.strip("\n") for line in LINES)


def test_a_split_has_its_documents_in_the_order_of_the_text(tmp_path):
    dataset = load(tmp_path, LINES)
    for part in dataset.splits:
        documents = documents_of(dataset, part)
        assert documents == sorted(documents, key=lambda text: int(text[5:].strip("!")))
        assert len(part.document_starts) == len(documents)


def test_equal_documents_are_in_one_split(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "charjax"):
        load(tmp_path, LINES * 3)
    assert not any("in the train split too" in message for message in caplog.messages)
    load(tmp_path, LINES * 3, split_by="position")
    assert any("in the train split too" in message for message in caplog.messages)


def test_the_splits_have_about_their_fractions():
    hashes = DocumentHasher()
    for i in range(20_000):
        hashes.add(Piece(f"Document {i}", [0]))
    numbers = split_numbers(hashes.finish(), FRACTIONS)
    np.testing.assert_allclose(np.bincount(numbers) / 20_000, FRACTIONS, atol=0.01)
    assert not split_numbers(np.array([0, 2**32 - 1], np.uint32), (1.0, 0.0, 0.0)).any()


def test_the_hash_of_a_document_is_the_same_in_every_release():
    hasher = DocumentHasher()
    hasher.add(Piece("The cat sat on the mat.\nλ", [0, 24]))
    hashes = hasher.finish()
    assert hashes.tolist() == [1308300866, 1209238075]
    assert split_numbers(hashes, FRACTIONS).tolist() == [0, 1]


def test_too_few_documents_for_the_splits_are_refused(tmp_path):
    with pytest.raises(
        InputError, match="split is empty; the text has 4 characters in 2 documents"
    ):
        load(tmp_path, ["a\n", "b\n"], batch_size=1)


def hashes_of(text: str, starts: list[int], cuts: list[int]) -> list[int]:
    """The hashes of a text that comes in pieces with these ends."""
    hasher, begin = DocumentHasher(), 0
    for end in [*cuts, len(text)]:
        hasher.add(Piece(text[begin:end], [s - begin for s in starts if begin <= s < end]))
        begin = end
    return hasher.finish().tolist()


@given(st.data())
def test_pieces_do_not_change_a_hash(data):
    text = data.draw(st.text("ab\n", min_size=1, max_size=30))
    positions = st.lists(st.integers(0, len(text) - 1), max_size=5, unique=True).map(sorted)
    starts, cuts = data.draw(positions), data.draw(positions)
    assert hashes_of(text, starts, cuts) == hashes_of(text, starts, [])


def test_a_hash_is_of_the_beginning_of_a_document_without_line_ends_around_it():
    long = "x" * HASHED
    texts = [long, long + "y", long[:-1], "a", "a\r\n", "\na", "b"]
    starts = np.cumsum([0, *map(len, texts[:-1])]).tolist()
    hashes = hashes_of("".join(texts), starts, [HASHED // 2])
    assert [hashes.index(h) for h in hashes] == [0, 0, 2, 3, 3, 3, 6]


@pytest.mark.parametrize(("documents", "delimiter"), [("files", ""), ("delimiter", "%")])
def test_a_document_in_several_shards_has_the_hash_of_memory(tmp_path, documents, delimiter):
    texts = ["%" + "".join(LINES[i : i + 9]) for i in range(0, 180, 9)]
    options = {"documents": documents, "delimiter": delimiter, "split": (1.0, 0.0, 0.0)}
    with tiny_shards():
        packed = load(tmp_path, texts, packed=True, **options).corpus.content.document_hashes()
    in_memory = load(tmp_path, texts, **options).corpus.content.document_hashes()
    np.testing.assert_array_equal(packed, in_memory)
    assert len(packed) == (20 if delimiter else 1)


@given(st.data())
def test_runs_are_the_documents_in_another_order(data):
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    order = np.array(data.draw(st.permutations(range(len(lengths)))))
    edges = np.cumsum([0, *lengths])
    runs = Runs.reordered(edges[:-1], int(edges[-1]), order)
    wanted = [p for i in order for p in range(edges[i], edges[i + 1])] + [int(edges[-1])]
    assert runs.positions(np.arange(edges[-1] + 1)).tolist() == wanted
    starts = [wanted.index(edges[i]) for i in order]
    assert runs.document_starts.tolist() == starts
