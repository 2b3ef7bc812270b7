"""One reading of a text: for training, for `charjax score`, and for prompts."""

from __future__ import annotations

import io
import itertools
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charjax.config import BATCHING_FIELDS, Config, DataConfig
from charjax.data.corpus import load_corpus
from charjax.data.dataset import Dataset, load_dataset
from charjax.data.new_text import prepare_prompt, read_tokens
from charjax.data.packed.plan import make_plan
from charjax.data.reading import csv_rows, decoding
from charjax.data.reading.rules import ReadingRules
from charjax.data.reading.units import text_of_unit
from charjax.data.sources import records
from charjax.data.sources.file_search import find_files
from charjax.data.vocab import Vocab
from charjax.errors import InputError

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "cp1252")
CHARACTERS = "abcABC éÉßñ,;'\n\t\u0301"
LAYOUTS = ("none", "lines", "files", "rows", "delimiter")
DELIMITER = "<|end|>"


def data_config(path: Path, **fields) -> DataConfig:
    return DataConfig(path=str(path), split=(1.0, 0.0, 0.0), batch_size=2, seq_len=4, **fields)


def write(folder: Path, layout: str, documents: list[str], encoding: str, newline: str) -> Path:
    """Documents as text files of a layout: one file, but with "files" one for each document."""
    separator = DELIMITER if layout == "delimiter" else "\n"
    if layout == "rows":
        documents = ['"' + text.replace('"', '""') + '"' for text in documents]
    texts = documents if layout == "files" else [separator.join(documents)]
    for number, text in enumerate(texts):
        data = text.replace("\n", newline).encode(encoding)
        (folder / f"{number:03}.txt").write_bytes(data)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=25)
@given(
    documents=st.lists(st.text(CHARACTERS, min_size=5, max_size=12), min_size=3, max_size=5),
    encoding=st.sampled_from(ENCODINGS),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    batching=st.sampled_from(sorted(BATCHING_FIELDS)),
    lowercase=st.booleans(),
)
def test_training_score_and_prompts_see_the_same_tokens(
    tmp_path_factory, layout, documents, encoding, newline, batching, lowercase
):
    if encoding == "cp1252":
        documents = [text.replace("\u0301", "") + "." for text in documents]
    folder = write(tmp_path_factory.mktemp("text"), layout, documents, encoding, newline)
    data = data_config(
        folder,
        documents=layout,
        delimiter=DELIMITER * (layout == "delimiter"),
        encoding="utf-8"
        if encoding.startswith("utf-8") or encoding in ("utf-16", "utf-32")
        else encoding,
        newlines="unix",
        csv_delimiter="," * (layout == "rows"),
        lowercase=lowercase,
        batching=batching,
        unk=True,
    )
    dataset = load_dataset(Config(data=data))
    train = dataset.splits.train
    scored = read_tokens(
        str(folder),
        dataset.corpus.rules,
        dataset.vocab,
        unknown="error",
        are_markers_required=False,
    )
    np.testing.assert_array_equal(scored, train.ids)
    edges = [*dataset.corpus.document_starts.tolist(), len(dataset.corpus.text)]
    read = [dataset.corpus.text[a:b] for a, b in itertools.pairwise(edges)]
    if layout not in ("none", "lines"):  # where a newline is no part of what was written
        written = [text.lower() if lowercase else text for text in documents]
        assert read == written
        for original, text in zip(documents, read, strict=True):
            given_prompt = original.replace("\n", newline)
            prompt = prepare_prompt(given_prompt, dataset.corpus.rules, dataset.vocab)
            np.testing.assert_array_equal(dataset.vocab.encode(prompt), dataset.vocab.encode(text))
    assert_every_position_is_trained_on(dataset, batching, has_documents=layout != "none")


def assert_every_position_is_trained_on(
    dataset: Dataset, batching: str, *, has_documents: bool
) -> None:
    """The targets of an epoch are all of the train split's, but for the remainder that is said."""
    batches, train = dataset.batches, dataset.splits.train
    positions = replace_ids_by_positions(dataset)
    steps = [positions(step) for step in range(batches.steps_per_epoch)]
    seen = [int(i) % max(1, train.num_targets) for b in steps for i in b.targets[b.mask]]
    assert len(set(seen)) == train.num_targets - batches.unused_chars
    if has_documents and batching != "stream":
        assert batches.unused_chars == 0
    if batching == "stream":
        assert 0 <= batches.unused_chars < 2 * 4


def replace_ids_by_positions(dataset: Dataset):
    """The same batches of a text whose token ids are their positions."""
    from charjax.data import batches as module

    batches, train = dataset.batches, dataset.splits.train
    text = module.TokenSplit(np.arange(len(train.ids)), train.document_starts, train.boundary_id)
    if train.boundary_id is not None:  # the last id must be the boundary's, the first one's
        text = text._replace(boundary_id=len(train.ids) - 1)
    return type(batches)(batches.config, text, 0)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_prompt_takes_the_normal_form_that_the_vocabulary_has(form):
    text = unicodedata.normalize(form, "caf\u00e9 Stra\u00dfe \u1ea5 \u00fc")
    for unit in ("codepoint", "byte"):
        characters = text if unit == "codepoint" else text.encode().decode("latin-1")
        vocab = Vocab(tuple(sorted(set(characters))), unit, False)
        rules = ReadingRules.from_config(DataConfig(unit=unit))
        for given_form in ("NFC", "NFD"):
            prompt = prepare_prompt(unicodedata.normalize(given_form, text), rules, vocab)
            assert prompt == text


def test_a_text_whose_characters_are_known_keeps_its_form():
    text = "e\u0301\u00e9"  # both forms
    vocab = Vocab(tuple(sorted(set(text))), "codepoint", False)
    assert prepare_prompt(text, ReadingRules.from_config(DataConfig()), vocab) == text


@pytest.mark.parametrize("unit", ["codepoint", "byte"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_a_prompt_with_half_of_a_surrogate_pair_is_refused(unit, lowercase):
    rules = ReadingRules.from_config(DataConfig(unit=unit, lowercase=lowercase))
    with pytest.raises(InputError, match="surrogate"):
        prepare_prompt("a\ud800", rules, Vocab(("a",), unit, unk=False))


@pytest.mark.parametrize("unit", ["codepoint", "byte"])
@pytest.mark.parametrize(
    ("text", "layout", "documents"),
    [
        ("a§bc§ï", {"documents": "delimiter", "delimiter": "§"}, ["a", "bc", "ï"]),
        ("größe,b\n1é,a\n2é,b\n", {"documents": "rows", "columns": ("größe",)}, ["1é", "2é"]),
    ],
)
def test_delimiters_and_columns_beyond_ascii_are_those_of_the_text(
    tmp_path, unit, text, layout, documents
):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    content = load_corpus(data_config(tmp_path / "a.txt", unit=unit, **layout)).content
    assert [*content.documents()] == [text_of_unit(document, unit) for document in documents]


def test_rules_round_trip_and_refuse_what_is_none():
    data = DataConfig(documents="rows", columns=(1, "text"), newlines="unix", csv_delimiter=";")
    rules = ReadingRules.from_config(data)
    assert ReadingRules.from_json(rules.to_json()) == rules
    for wrong in ({}, {"unit": 1}, rules.to_json() | {"documents": {}}, [], None):
        with pytest.raises(InputError, match="reading"):
            ReadingRules.from_json(wrong)


def test_a_file_that_differs_is_read_with_options():
    data = DataConfig(documents="rows", columns=(1,))
    rules = ReadingRules.from_config(replace(data, csv_delimiter=";"))  # as it was detected
    latin = rules.with_options(data, {"encoding": "latin-1"})
    assert latin == replace(rules, encoding="latin-1")
    lines = rules.with_options(data, {"documents": "lines"})
    assert (lines.documents.mode, lines.documents.boundary) == ("lines", True)
    assert rules.with_options(data, {"delimiter": "--"}).documents.mode == "delimiter"
    with pytest.raises(InputError, match=r"^--newlines='mac': must be one of"):
        rules.with_options(data, {"newlines": "mac"})
    in_bytes = DataConfig(unit="byte")
    with pytest.raises(InputError, match=r"^--encoding: .* a token of this model is a byte"):
        ReadingRules.from_config(in_bytes).with_options(in_bytes, {"encoding": "latin-1"})


@given(st.lists(st.text("a\r\n", max_size=5)))
def test_lines_are_the_same_however_a_text_is_cut(chunks):
    text = "".join(chunks)
    assert [*csv_rows._physical_lines(iter(chunks))] == [*io.StringIO(text, newline="")]
    blocks = [chunk.encode() for chunk in chunks]
    assert [*records._lines(blocks)] == text.encode().split(b"\n")


@given(st.lists(st.text("aA1\u03a3\u0301\u0130.' \n", max_size=5)))
def test_lower_case_is_the_same_however_a_text_is_cut(chunks):
    assert "".join(decoding.lower(chunks, "codepoint")) == "".join(chunks).lower()


@given(
    words=st.lists(
        st.sampled_from(["a", "A1", "\u0130", "\u65e5", "a\u03a3", "\u03a3a", "b\u03a3'"])
    ),
    length=st.integers(1, 5),
)
def test_lower_case_of_a_long_word_is_the_same_however_it_is_cut(words, length):
    text = "".join(words)
    chunks = [text[i : i + length] for i in range(0, len(text), length)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_MAX_WORD", 4)  # there is a letter in each four characters
        assert "".join(decoding.lower(chunks, "codepoint")) == text.lower()


def test_files_without_newlines_are_named_once(tmp_path, caplog):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_bytes(b"a\rb")
    load_corpus(DataConfig(path=str(tmp_path), documents="lines"))
    (notice,) = [m for m in caplog.messages if "carriage returns" in m]
    assert notice.startswith(f"NOTICE: {tmp_path / '0.txt'} and 2 more: ")
    assert "set config.data.newlines=unix" in notice


@pytest.mark.parametrize("blank", ["", "\n", "\r\n\r\n"])
@pytest.mark.parametrize(("columns", "header"), [(("text",), True), ((1,), True), ((1,), False)])
def test_a_table_without_rows_does_not_decide_how_others_are_read(tmp_path, blank, columns, header):
    (tmp_path / "a.csv").write_text(blank, newline="")
    (tmp_path / "b.csv").write_text("id;text\n" * header + "1;a, b\n2;c\n")
    data = data_config(tmp_path / "*.csv", documents="rows", columns=columns, header=header)
    corpus = load_corpus(data)
    assert (corpus.text, corpus.rules.documents.csv_delimiter) == ("a, bc", ";")
    files, rules = find_files(data.path, "PATH"), ReadingRules.from_config(data)
    assert make_plan(files, rules, "").reading.documents.csv_delimiter == ";"


def test_a_table_without_line_ends_is_split_once(monkeypatch):
    num_split = 0

    def split(text: str, newline: str) -> io.StringIO:
        nonlocal num_split
        num_split += len(text)
        return io.StringIO(text, newline)

    monkeypatch.setattr(csv_rows, "io", SimpleNamespace(StringIO=split))
    (line,) = csv_rows._physical_lines(itertools.repeat("a,b,", 1000))
    assert num_split == len(line) == 4000
