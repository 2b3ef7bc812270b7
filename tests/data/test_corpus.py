from __future__ import annotations

import hashlib
import itertools
import logging
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.config import DataConfig
from charjax.data.corpus import Corpus, load_corpus
from charjax.data.packed.plan import make_plan
from charjax.data.reading.rules import ReadingRules
from charjax.data.sources.file_search import find_files
from charjax.errors import HostError, InputError

from .shelf import Shelf

NIGHT = "it was a dark and stormy night; the rain fell in torrents" * 20
DELIMITED = {"documents": "delimiter"}
NO_ENCODINGS = ("nonsense", "base64", "undefined", "a\0b")


def load(**fields) -> Corpus:
    return load_corpus(DataConfig(**fields))


@pytest.fixture
def read(tmp_path):
    """The corpus of a file with these bytes."""

    def read_bytes(data: bytes, **fields) -> Corpus:
        (tmp_path / "text.txt").write_bytes(data)
        return load(path=str(tmp_path / "text.txt"), **fields)

    return read_bytes


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def documents_of(corpus: Corpus) -> list[str]:
    edges = [*corpus.document_starts.tolist(), len(corpus.text)]
    return [corpus.text[a:b] for a, b in itertools.pairwise(edges)]


# Decoding.


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_text_arrives_as_it_is(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_bytes(b"|" + text.encode("utf-8"))
    corpus = load(path=str(path))
    assert corpus.text == "|" + text
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (corpus.document_starts.tolist(), corpus.notice, corpus.name) == ([0], "", str(path))


@given(data=st.binary(min_size=1))
def test_any_bytes_can_be_read_as_bytes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "data"
    path.write_bytes(data)
    assert load(path=str(path), unit="byte").text.encode("latin-1") == data


def test_line_ends_stay_unless_told_otherwise(read):
    data = b"a\r\nb\rc\nd\n\re"
    assert read(data).text == data.decode()
    assert read(data, newlines="unix").text == "a\nb\nc\nd\n\ne"


def test_a_leading_byte_order_mark_is_dropped_and_logged(read, caplog):
    corpus = read("\ufeffa\ufeffb".encode())
    assert corpus.text == "a\ufeffb"
    assert corpus.notice == "dropped the byte order mark of text.txt"
    assert warnings(caplog) == [f"NOTICE: {corpus.notice}"]


def test_bytes_that_are_no_utf8_are_named_with_offset_and_remedy(read, tmp_path):
    with pytest.raises(InputError) as caught:
        read(b"abc\xffdef")
    message = str(caught.value)
    for words in (str(tmp_path / "text.txt"), "0xFF", "offset 3", "utf-8", "unit=byte"):
        assert words in message
    assert read(b"abc\xffdef", encoding="latin-1").text == "abc\xffdef"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_byte_order_mark_names_the_encoding(read, encoding):
    mark = "\ufeff" * encoding.endswith("be")
    assert read((mark + "once upon a time").encode(encoding)).text == "once upon a time"


@pytest.mark.parametrize("encoding", ["utf-16-le", "latin-1"])
def test_another_encoding_is_named_and_never_guessed(read, encoding):
    data = ("Die Tür quietschte, süße Brötchen; " * 20).encode(encoding)
    with pytest.raises(InputError, match=r"config\.data\.encoding=(utf-16-le|cp1252) "):
        read(data)
    assert read(data, encoding=encoding).text.encode(encoding) == data


def test_lower_case(read):
    assert read("ÄB".encode(), lowercase=True).text == "äb"
    lowered = read("ÄB".encode(), lowercase=True, unit="byte").text
    assert lowered.encode("latin-1").decode("utf-8") == "Äb"


# Markers.


@pytest.mark.parametrize("unit", ["codepoint", "byte"])
def test_markers_keep_what_is_between_them(read, unit):
    data = "END é Kopf ÄNFANG Text END Fuß".encode()
    text = read(data, unit=unit, start="ÄNFANG", end="END").text
    assert text.encode("latin-1" if unit == "byte" else "utf-8").decode("utf-8") == "ÄNFANG Text "


def test_markers_are_found_before_case_is_lowered(read):
    assert read(b"head START Body", start="START", lowercase=True).text == "start body"


# Documents.


def test_lines_are_documents_with_their_newline(read):
    corpus = read("a\n\nb\x85\u2028c\r\nd".encode(), documents="lines", boundary=False)
    assert documents_of(corpus) == ["a\n", "\n", "b\x85\u2028c\r\n", "d"]
    assert corpus.document_starts.dtype == np.int64


def test_lines_with_a_boundary_lack_their_line_ends(read):
    corpus = read("a\n\nb\x85\u2028c\r\nd".encode(), documents="lines")
    assert documents_of(corpus) == ["a", "b\x85\u2028c", "d"]


def test_rows_are_documents_of_joined_columns(read):
    data = b'"3","Title, one","Text ""quoted""\nmore"\n\n"4","Two",""\n'
    corpus = read(data, documents="rows", columns=(1, 2))
    assert documents_of(corpus) == ['Title, one Text "quoted"\nmore', "Two "]
    assert documents_of(read(data, documents="rows", columns=(0,))) == ["3", "4"]
    assert documents_of(read(b"a,b\nc\n", documents="rows")) == ["a b", "c"]


# What is refused.


@pytest.mark.parametrize(
    ("data", "fields", "message"),
    [
        *((b"abc..d" * 20, {"encoding": name}, "config.data.encoding") for name in NO_ENCODINGS),
        (NIGHT.encode("utf-16-le"), {"encoding": "utf-16"}, "is not utf-16 .*BOM.*data.encoding"),
        (NIGHT.encode("utf-32-le"), {"encoding": "utf-32"}, "is not utf-32 .*BOM.*data.encoding"),
        (b"a+2AA-", {"encoding": "utf-7"}, "character 1 is half of a surrogate pair"),
        (b"text", {"start": "MARK"}, r"config.data.start='MARK': not in .*text\.txt"),
        (b"text", {"end": "MARK"}, r"config.data.end='MARK': not in .*text\.txt"),
        (b"a,b\n", {"documents": "rows", "columns": (2,)}, "line 1 of .* has 2 columns"),
        (b"a,b\n", {"documents": "rows", "columns": (0, -1)}, "line 1 of .* has 2 columns"),
        (b"a b\n", {"documents": "rows", "columns": ("b",)}, "no column 'b'; .*csv_delimiter"),
        (
            b"abc",
            DELIMITED | {"delimiter": "x"},
            r"config.data.delimiter='x': not in .*text\.txt; .* set config.data.documents=files",
        ),
        (b"abc", DELIMITED | {"delimiter": r"\n"}, "a backslash is not an escape"),
        (b'a,"b\nc', {"documents": "rows"}, "is not valid CSV"),
        (b'"a"b,c', {"documents": "rows"}, "is not valid CSV"),
        (b"", {}, r"text\.txt: the text is empty"),
        (b"", {"documents": "lines"}, r"text\.txt: the text is empty"),
        (b"", {"documents": "rows"}, r"text\.txt: the text is empty"),
        (b"", {"unit": "byte"}, r"text\.txt: the text is empty"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(read, data, fields, message):
    with pytest.raises(InputError, match=message):
        read(data, **fields)


# Paths.


@pytest.fixture
def folder(tmp_path):
    for name, text in {"b.txt": "two", "a/c.txt": "one", "a/d.md": "no", "empty.txt": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("pattern", ["", "/**/*.txt", "/**/[abe]*.txt"])
def test_folders_and_globs_are_read_in_order_of_their_paths(folder, pattern):
    path = str(folder) + pattern
    # In the order of a/c.txt, b.txt and empty.txt; the last pattern has no c.txt.
    texts = ["two"] if "[" in pattern else ["one", "two"]
    assert load(path=path).text == "\n".join([*texts, ""])
    assert documents_of(load(path=path, documents="files")) == texts


def test_lines_of_several_files_follow_each_other(folder):
    assert documents_of(load(path=str(folder), documents="lines")) == ["one", "two"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "[a].txt").write_text("brackets")
    (tmp_path / "a.txt").write_text("glob")
    assert load(path=str(tmp_path / "[a].txt")).text == "brackets"


@pytest.mark.parametrize("name", ["none.txt", "b.txt/none", "*.none", "bare"])
def test_a_path_without_a_text_is_named(folder, name):
    (folder / "bare").mkdir()
    with pytest.raises(InputError, match=r"config.data.path=.*no (such|text) file"):
        load(path=str(folder / name))


def test_a_file_that_cannot_be_read_is_the_machines_fault(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(HostError, match="loop: cannot be read"):
        load(path=str(tmp_path / "loop"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_as_a_run_reads_its_text_again(tmp_path):
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    for path in (pipe, "-"):
        with pytest.raises(InputError, match=rf"config\.data\.path='{path}': a pipe, .* save"):
            load(path=path)
    files, rules = find_files(pipe, "PATH"), ReadingRules.from_config(DataConfig())
    with pytest.raises(InputError, match=r"PATH='.*': a pipe"):
        make_plan(files, rules, "")


# Names, and the substitute of a missing corpus.


def test_a_named_corpus_is_processed_like_any_other(shelf):
    shelf.put("data")
    corpus = load(corpus="story", lowercase=True, start="upon")
    assert (corpus.name, corpus.text, corpus.notice) == ("story", "upon a time.\n", "")


@pytest.mark.parametrize("field", ["corpus", "offline"])
def test_an_unknown_name_lists_those_there_are(shelf, field):
    shelf.put("data")
    fields = {"corpus": "story", field: "shakespere"}
    with pytest.raises(InputError, match=f"config.data.{field}='shakespere': .*shakespeare"):
        load(**fields)


def test_without_a_substitute_a_missing_corpus_ends_with_exit_code_4(shelf):
    with pytest.raises(HostError) as caught:
        load(corpus="story")
    message = str(caught.value)
    assert caught.value.exit_code == 4
    remedies = ("config.data.path=FILE", "config.data.offline=python_docs")
    for words in ("'story'", str(shelf.data), str(shelf.cache), "example.org/story", *remedies):
        assert words in message
    assert len(message.splitlines()) == 1


def test_a_substitute_is_used_loudly_and_without_the_options_of_the_other_file(shelf, caplog):
    fields = {"start": "upon", "documents": "rows", "columns": (1,), "encoding": "utf-16"}
    corpus = load(corpus="story", offline="python_docs", lowercase=True, **fields)
    assert corpus.name == "python_docs"
    assert len(corpus.text) > 300_000
    assert corpus.text.islower()
    assert corpus.notice == "'python_docs' REPLACES the corpus 'story'"
    missing, replaced = warnings(caplog)
    assert "https://example.org/story" in missing
    assert replaced == f"NOTICE: {corpus.notice}"


def test_a_substitute_is_not_used_where_the_corpus_is_found_or_downloaded(shelf, caplog):
    shelf.online = True
    corpus = load(corpus="story", offline="python_docs")
    assert (corpus.name, corpus.text.encode(), corpus.notice) == ("story", Shelf.TEXT, "")
    assert warnings(caplog) == []


def test_a_corpus_that_is_found_but_damaged_is_not_replaced(shelf):
    shelf.put("data", b"\xff")
    with pytest.raises(InputError, match="0xFF"):
        load(corpus="story", offline="python_docs")


def test_a_path_goes_before_a_name(shelf, read):
    assert read(b"mine", corpus="story").text == "mine"
    assert shelf.fetched == []
