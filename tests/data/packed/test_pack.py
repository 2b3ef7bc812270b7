"""Packed texts: what a store holds; `charjax pack` goes on after a kill; damage is found."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charjax.cli.main import main
from charjax.config import DataConfig
from charjax.data.corpus import load_corpus
from charjax.data.packed import files as store_files
from charjax.data.packed import pack as pack_module
from charjax.data.packed import shard_writer
from charjax.data.packed.pack import pack
from charjax.data.packed.store import TextStore
from charjax.data.packed.tokens import PackedText
from charjax.data.sources import records
from charjax.data.vocab import Vocab
from charjax.errors import CharjaxError, HostError, InputError, StoreError
from charjax.runtime.locks import lock
from tests.environment import contents
from tests.faults.trial import damaged

from ..packing import packed, plan_of, tiny_shards

CHARACTERS = "abcAΣ\u03c3ς é\u0307İ,;'\n\r\t日\u0301"
LAYOUTS = ("none", "lines", "files", "rows", "delimiter")


def patch_writes(patch: pytest.MonkeyPatch, write) -> None:
    """Replaces the function that writes plans, records and indexes."""
    for module in (pack_module, shard_writer):
        patch.setattr(module, "write_file", write)


def pack_files(path: Path, out: Path | str, **fields) -> TextStore:
    return TextStore(packed(DataConfig(path=str(path), **fields), out).path)


def read_store(store: TextStore) -> tuple[list[str], np.ndarray]:
    """The characters of a store, "" for a boundary, and the starts of its documents."""
    has_boundary = store.rules.documents.boundary
    vocab = Vocab(tuple(store.index.characters), "codepoint", unk=False, boundary=has_boundary)
    text = PackedText.open(store, vocab)
    return [[*vocab.characters, ""][i] for i in np.asarray(text.tokens)], text.starts


def expected(path: Path, **fields) -> tuple[list[str], np.ndarray]:
    corpus = load_corpus(DataConfig(path=str(path), **fields))
    starts = corpus.document_starts
    if not corpus.rules.documents.boundary:
        return list(corpus.text), starts
    edges = [*starts.tolist(), len(corpus.text)]
    tokens = [c for a, b in itertools.pairwise(edges) for c in ("", *corpus.text[a:b])]
    return [*tokens, ""], starts + np.arange(len(starts))


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=25)
@given(
    texts=st.lists(st.text(CHARACTERS, max_size=150), min_size=1, max_size=3),
    options=st.fixed_dictionaries(
        {
            "newlines": st.sampled_from(["keep", "unix"]),
            "lowercase": st.booleans(),
            "unit": st.sampled_from(["codepoint", "byte"]),
            "boundary": st.booleans(),
            "start": st.sampled_from(["", "", "a"]),
        }
    ),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_a_store_has_the_text_of_memory(tmp_path_factory, layout, texts, options, encoding):
    folder = tmp_path_factory.mktemp("text")
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_bytes(("a" + text).encode(encoding))
    options = options | {"documents": layout, "columns": (0,) * (layout == "rows")}
    options |= {"delimiter": "c"} if layout == "delimiter" else {}
    options |= {"boundary": True} if layout == "none" else {}
    try:
        wanted = expected(folder, **options)
    except InputError:
        with tiny_shards(), pytest.raises(InputError):
            pack_files(folder, folder / "store", **options)
        return
    with tiny_shards():
        characters, starts = read_store(pack_files(folder, folder / "store", **options))
    assert characters == wanted[0]
    np.testing.assert_array_equal(starts, wanted[1])


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A text of 8 shards of at least 64 bytes, which are packed in 10 writes."""
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text("".join(f"line {i:03} of the text\n" for i in range(32)))
    return path


@pytest.fixture(scope="module")
def store(text) -> Path:
    with tiny_shards():
        pack_files(text, text.parent / "store", documents="lines")
    return text.parent / "store"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("fatal_write", [1, 2, 3, 5, 9, 10])
def test_a_killed_pack_goes_on_and_ends_in_the_same_store(
    text, store, tmp_path, monkeypatch, fatal_write
):
    wanted, writes = contents(store), 0
    real_write = store_files.write_file

    def write(files, name, content):
        nonlocal writes
        writes += 1
        if writes == fatal_write:
            raise Killed
        real_write(files, name, content)

    with tiny_shards(), monkeypatch.context() as patch:
        patch_writes(patch, write)
        for _ in range(3):  # killed, goes on, finds the complete store
            writes_before = writes
            with contextlib.suppress(Killed):
                pack_files(text, tmp_path / "store", documents="lines")
    assert writes_before == writes, "the last call had something left to write"
    assert contents(tmp_path / "store") == wanted


def test_processes_pack_the_same_store_together(text, store, tmp_path):
    out = tmp_path / "store"
    with tiny_shards():
        plan = plan_of(text, documents="lines")
        assert pack(plan, str(out), process=(1, 3)) is None
        assert pack(plan, str(out), process=(0, 3)) is None
        assert pack(plan, str(out), process=(2, 3)) is not None
    assert contents(out) == contents(store)


@pytest.mark.parametrize("moment", ["plan.json", "store.json"])
def test_processes_may_start_and_end_at_any_moment(text, store, tmp_path, moment):
    out = str(tmp_path / "store")
    files = store_files.open_files(out)

    def read(name):
        found = files.read(name).result()
        if name == moment:  # then another process packs the rest
            assert pack(plan, out) is not None
        return Mock(result=lambda: found)

    with tiny_shards():
        plan = plan_of(text, documents="lines")
        if moment == "store.json":
            assert pack(plan, out, process=(1, 3)) is None
        pack_module._check_same(Mock(spec=files, read=read), out, plan)
        assert pack(plan, out, process=(1, 3)) is not None
    assert contents(tmp_path / "store") == contents(store)


@pytest.mark.parametrize("process", [(0, 1), (1, 2), (2, 4)])
def test_a_shard_is_packed_by_one_process_at_a_time(text, store, tmp_path, process):
    out = tmp_path / "store"
    with tiny_shards():
        plan = plan_of(text, documents="lines")
        assert pack(plan, str(out), process=(1, 3)) is None
        with pack_module._locked(str(out), (2, 3)), pytest.raises(HostError, match="num_processes"):
            pack(plan, str(out), process=process)
        for number in range(process[1]):
            pack(plan, str(out), process=(number, process[1]))
    assert contents(out) == contents(store)


def problems_of(store: Path) -> list[str]:
    """What `verify` finds; each is one line."""
    try:
        problems = [problem for _, problem in TextStore(str(store)).verify() if problem]
    except CharjaxError as error:  # of store.json
        problems = [str(error)]
    assert all(len(problem.splitlines()) == 1 for problem in problems)
    return problems


@pytest.mark.parametrize("kind", ["flip", "truncate", "delete"])
def test_every_damage_is_found_by_verify(store, tmp_path, kind):
    generator = random.Random(kind)
    copy = shutil.copytree(store, tmp_path / "store")
    with tiny_shards():
        assert not problems_of(copy)
        for name in generator.choices(sorted(contents(store)), k=40):
            good = (copy / name).read_bytes()
            if kind == "delete":
                (copy / name).unlink()
            else:
                (copy / name).write_bytes(damaged(good, kind, generator))
            assert problems_of(copy), (kind, name)
            (copy / name).write_bytes(good)


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, dict, str]]:
    """Runs a command: its exit code, its JSON and its standard error."""

    def run(*arguments: object) -> tuple[int, dict, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, json.loads(out or "{}"), err

    return run


@pytest.fixture
def refuse(run) -> Callable[..., None]:
    """Packs what is refused in one line, with this exit code and message."""

    def refuse(*arguments: object, code: int = 2, message: str) -> None:
        got, _, err = run("pack", *arguments)
        assert (got, message in err, len(err.splitlines())) == (code, True, 1), err

    return refuse


def test_a_refused_text_is_packed_by_the_corrected_command(tmp_path, run):
    (tmp_path / "a.txt").write_bytes("caf\xe9 au lait\n".encode("latin-1") * 20)
    command = ("pack", tmp_path / "a.txt", f"--out={tmp_path / 'store'}")
    assert run(*command)[0] == 2
    code, values, err = run(*command, "--encoding=latin-1")
    assert (code, values["chars"]) == (0, 260), err
    names = sorted(path.name for path in (tmp_path / "store").iterdir())
    assert names == ["shards", "store.json", "tokens"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plan.json", '{"format": "of a house"}'),
        ("plan.json", "no JSON"),
        ("plan.json", "[1]"),
        ("uv.lock", ""),
    ],
)
def test_a_file_of_the_user_is_kept_and_no_packed_text(text, tmp_path, refuse, name, content):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / name).write_text(content)
    for _ in range(2):  # beside this file, and beside a text, too
        refuse(text, f"--out={folder}", message="holds other files; choose another --out")
        (folder / "a.txt").write_text("a text")
    assert contents(folder) == {"a.txt": b"a text", name: content.encode()}
    assert load_corpus(DataConfig(path=str(folder))).text == "a text"


def test_a_pack_at_work_is_not_replaced_by_one_with_other_options(text, tmp_path, run, refuse):
    out = tmp_path / "store"
    (tmp_path / "b.txt").write_bytes(b"\xff")
    assert run("pack", tmp_path / "b.txt", f"--out={out}")[0] == 2
    with open(out / "process-0-of-1.lock", "ab") as file:
        lock(file.fileno())
        refuse(text, f"--out={out}", message="packed from other files or with other options")


def test_pack_and_verify_of_the_command_line(text, tmp_path, run, refuse):
    out = tmp_path / "store"
    command = ("pack", text, f"--out={out}", "--documents=lines", "--boundary=False")
    code, values, err = run(*command)
    assert (code, values["chars"], values["documents"]) == (0, len(text.read_text()), 32)
    assert "--config.data.documents=lines --config.data.boundary=False" in err
    delimited = ("pack", text, f"--out={tmp_path / 'b'}", "--delimiter=e ", "--documents=delimiter")
    assert "'--config.data.delimiter=e '" in run(*delimited)[2]  # for a shell
    assert run("verify", out)[:2] == (0, {"0": "good"})
    assert run(*command)[1] == values  # there is nothing left to do
    refuse(*command[1:-1], message="packed from other files or with other options")
    (out / "tokens/00000/c/0").unlink()
    code, verdicts, err = run("verify", out)
    assert code == 3
    assert "damaged" in verdicts["0"]
    assert len(err.splitlines()) == 1


def test_what_is_found_in_many_shards_is_said_once(tmp_path, run):
    lines, store = "one\n\ntwo\n" * 20, tmp_path / "store"
    for number in range(2):
        (tmp_path / f"{number}.txt").write_bytes(f"\ufeff{lines}".encode())
        (tmp_path / f"{number}.mac").write_bytes(lines.replace("\n", "\r").encode())
    command = ("pack", tmp_path / "*.*", f"--out={store}", "--documents=lines", "--boundary=true")
    with tiny_shards():
        said = run(*command)[2]
    index = json.loads((store / "store.json").read_text())
    assert len(index["shards"]) > 4
    bom = "dropped the byte order mark of 0.txt and 1 more"
    assert index["notices"] == [bom]
    returns = f"{tmp_path / '0.mac'} and 1 more: carriage returns and no newlines"
    for message in (bom, returns, "left out 40 empty documents"):
        assert [message in line for line in said.splitlines()].count(True) == 1
    assert len(said.splitlines()) == 4


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_texts_of_records_are_packed_as_files(tmp_path, suffix, run, refuse):
    texts = [f"Record {i}:\nbodyé " for i in range(16)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=7)
    else:
        data = "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts))
        path.write_bytes(gzip.compress(data.encode()) if suffix.endswith("gz") else data.encode())
    for number, text in enumerate(texts):
        (tmp_path / f"{number:03}.txt").write_text(text)
    for documents in ("files", "none", "lines"):
        out = tmp_path / f"store-{documents}"
        arguments = ("pack", path, f"--out={out}", f"--documents={documents}", "--field=text")
        with tiny_shards():
            code, _, said = run(*arguments)
            assert (code, "NOTICE" in said) == (0, False)
            characters, starts = read_store(TextStore(str(out)))
        wanted = expected(tmp_path, documents=documents)
        assert characters == wanted[0]
        np.testing.assert_array_equal(starts, wanted[1])
    for field, message in (("", "name the field"), ("body", "body")):
        refuse(path, f"--out={tmp_path / 'refused'}", f"--field={field}", message=message)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_parts_without_records_add_nothing(tmp_path, suffix, run):
    def write(name, groups):
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".jsonl":
            lines = [json.dumps({"text": texts[0]}) if texts else " " * 99 for texts in groups]
            return path.write_text("".join(f"{line}\n" for line in lines))
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        schema = pyarrow.schema([("text", pyarrow.string())])
        with parquet.ParquetWriter(path, schema) as writer:
            for texts in groups:
                writer.write_table(pyarrow.table({"text": texts}, schema))

    for name, groups in (
        *(("a", []), ("b", [[], ["one"], [], ["two"], []]), ("c", [[], []])),
        *(("d", [["three"]]), ("e", [])),
    ):
        write(name, groups)
    for shard_bytes in (1 << 26, 64):
        out = tmp_path / f"store-{shard_bytes}"
        with tiny_shards(shard_bytes):
            assert run("pack", tmp_path / f"*{suffix}", f"--out={out}", "--field=text")[0] == 0
            assert "".join(read_store(TextStore(str(out)))[0]) == "one\ntwo\nthree"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", (), "the text is empty"),
        ("abc", ("--documents=delimiter", "--delimiter=x"), "not in any of the files"),
        ("abc", ("--documents=delimiter", r"--delimiter=\n"), "a backslash is not an escape"),
        ("aXc", ("--delimiter=X", "--documents=delimiter", "--lowercase"), "write it in lower"),
        ("abc", ("--start=x",), "not in"),
        ("abc", ("--columns=1",), "only CSV rows have columns"),
        ("abc", ("--process_id=1",), "must be from 0 to 0"),
        ("abc", ("--num_processes=0",), "--num_processes=0: must be 1 or more"),
        ("abc", ("--field=text",), "neither JSON lines"),
        ("abc", ("--field=text", "--encoding=cp1252"), "JSON lines and Parquet are UTF-8"),
    ],
)
def test_what_cannot_be_packed_is_refused_in_a_line(tmp_path, refuse, content, options, message):
    (tmp_path / "a.txt").write_text(content)
    refuse(tmp_path / "a.txt", f"--out={tmp_path / 'store'}", *options, message=message)


def test_few_rows_of_parquet_are_in_memory_at_a_time(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["a" * 1000] * 5000}), tmp_path / "a.parquet")
    tracemalloc.start()
    try:
        texts = records.parquet(str(tmp_path / "a.parquet"), "text", 0, 1)
        assert sum(len(block) for text in texts for block in text.blocks) == 5_000_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_parquet_is_opened_as_often_whatever_its_number_of_row_groups(tmp_path, run, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table, opened = pyarrow.table({"text": [f"text {i}" for i in range(40)]}), []
    opener = Mock(side_effect=parquet.ParquetFile)
    monkeypatch.setattr(parquet, "ParquetFile", opener)
    digests = set()
    for rows in (1, 40):
        path = tmp_path / f"{rows}.parquet"
        parquet.write_table(table, path, row_group_size=rows)
        opener.reset_mock()
        _, values, _ = run("pack", path, "--field=text", f"--out={tmp_path / str(rows)}")
        digests.add(values["sha256"])
        opened.append(opener.call_count)
    assert opened[0] == opened[1]
    assert len(digests) == 1


def test_a_column_of_parquet_may_have_a_dot_in_its_name(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"a": [{"text": "inside of a"}], "a.text": ["the text"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    (text,) = records.parquet(str(tmp_path / "a.parquet"), "a.text", 0, 1)
    assert b"".join(text.blocks) == b"the text"


def test_a_page_of_parquet_is_compared_with_its_checksum(tmp_path, refuse):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, table = tmp_path / "a.parquet", pyarrow.table({"text": ["a text"]})
    parquet.write_table(table, path, compression="none", write_page_checksum=True)
    path.write_bytes(path.read_bytes().replace(b"a text", b"a test"))
    options = ("--field=text", f"--out={tmp_path / 'store'}")
    refuse(path, *options, message="a.parquet: cannot be read")


def test_records_that_cannot_be_read_are_refused_in_a_line(tmp_path, refuse, monkeypatch):
    options = ("--field=text", f"--out={tmp_path / 'store'}")
    (tmp_path / "a.jsonl").write_bytes(b"[" * 100_000)
    refuse(tmp_path / "a.jsonl", *options, message="line 1 is not JSON")
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a text"]}), path, compression="none")
    path.write_bytes(path.read_bytes().replace(b"a text", b"\xff text"))
    refuse(path, *options, message="a.parquet: cannot be read")

    def no_rights(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(parquet, "ParquetFile", no_rights)
    refuse(path, *options, code=4, message="a.parquet: cannot be read")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (NotImplementedError("KeyValueStore does not support writing"), 2, "choose a folder"),
        (NotADirectoryError(20, "Not a directory"), 2, "not a folder"),
        (ValueError("PERMISSION_DENIED: no rights"), 4, "no rights"),
        (ValueError("INTERNAL: full [os_error_code='28']"), 4, "No space left"),
    ],
)
def test_a_store_that_cannot_be_written_is_named(
    text, tmp_path, refuse, monkeypatch, error, code, message
):
    def write(*_):
        raise error

    patch_writes(monkeypatch, write)
    out = f"--out={tmp_path / 'out'}"
    refuse(text, out, code=code, message=message)
    refuse(text, out, code=code, message=f"{out}: ")


def test_nobody_is_told_to_delete_the_folder_of_the_texts(text, refuse):
    refuse(text, f"--out={text.parent}", message="holds other files; choose another --out\n")
    assert text.exists()


def test_a_store_json_that_charjax_did_not_write_is_to_be_renamed_not_deleted(tmp_path):
    (tmp_path / "store.json").write_text('{"shop": 1}')
    with pytest.raises(StoreError, match=r"did not write it, rename it$") as error:
        TextStore(str(tmp_path))
    assert "delete" not in str(error.value)


def test_a_server_that_cannot_be_reached_is_no_damage_and_costs_no_minutes(text, monkeypatch):
    retries = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
    monkeypatch.setattr(store_files, "_RETRIES", retries)
    monkeypatch.setenv("no_proxy", "*")
    out = "http://127.0.0.1:1/store"
    with pytest.raises(HostError, match=r"store\.json: cannot be read .*check rights, the network"):
        TextStore(out)
    with pytest.raises(HostError, match=rf"--out={out}: cannot be written"):
        pack_files(text, out)


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_record_of_an_unfinished_store_is_named(text, tmp_path, record):
    with tiny_shards():
        plan = plan_of(text)
        pack(plan, str(tmp_path), process=(1, 2))
        path = tmp_path / "shards" / "00001.json"
        path.write_bytes(record)
        with pytest.raises(StoreError, match=r"shards/00001.json: damaged .*delete this file"):
            pack(plan, str(tmp_path))
        path.unlink()
        assert pack(plan, str(tmp_path)) is not None


def test_a_file_that_changes_while_it_is_packed_is_refused(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("line of the text\n" * 32)
    with tiny_shards():
        plan = plan_of(text)
        pack(plan, str(tmp_path / "store"), process=(1, 2))
        text.write_text("another text\n" * 32)
        with pytest.raises(InputError, match=r"a\.txt: has changed while it was packed"):
            pack(plan, str(tmp_path / "store"))


def test_the_last_line_of_a_text_in_parts_needs_no_newline(tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes(b"a line of the text\n" * 4 + b"the last\r")
    with tiny_shards():
        assert len(pack_files(tmp_path / "a.txt", tmp_path / "store", documents="lines").shards) > 1
    assert "carriage returns" not in caplog.text


def test_where_an_open_file_cannot_be_deleted_its_lock_stays(text, tmp_path, monkeypatch):
    def unlink(path, missing_ok=False):
        raise PermissionError(13, "used by another process", str(path))

    monkeypatch.setattr(Path, "unlink", unlink)
    store = pack_files(text, tmp_path / "out")
    assert store.index.chars == len(text.read_text())


def test_a_path_may_lead_through_the_folder_above(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "text.txt").write_text("A text.\n")
    monkeypatch.chdir(tmp_path / "here")
    assert read_store(pack_files(Path("../text.txt"), Path("../store")))[0] == [*"A text.\n"]


def test_a_byte_order_mark_keeps_a_file_in_one_piece(tmp_path):
    text = "".join(f"line {i}\n" for i in range(40))
    for encoding, mark in (("utf-16-le", b"\xff\xfe"), ("utf-32-be", b"\0\0\xfe\xff")):
        path = tmp_path / f"{encoding}.txt"
        path.write_bytes(mark + text.encode(encoding))
        with tiny_shards():
            characters, _ = read_store(pack_files(path, tmp_path / encoding))
        assert "".join(characters) == text
