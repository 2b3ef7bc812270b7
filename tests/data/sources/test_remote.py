"""Texts at addresses are packed as those in files are; what cannot be read is named in a line."""

from __future__ import annotations

import bz2
import functools
import gzip
import http.server
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from charjax.cli.main import main
from charjax.data.packed.store import TextStore
from charjax.data.sources import remote
from tests.cli.test_packed import Ranges

from ..loopback import Call
from ..packed.test_pack import read_store
from ..packing import tiny_shards

fsspec = pytest.importorskip("fsspec")
aiohttp = pytest.importorskip("aiohttp")
TEXT = "".join(f"line {i:03} of the text, \u03bb\n" for i in range(40))


@pytest.fixture
def texts(tmp_path) -> Path:
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_text(TEXT)
    (folder / "more" / "b.txt").write_text(TEXT[:100])
    (folder / "more" / "B.TXT").write_text(TEXT[100:200])
    (folder / "more" / ".b.txt").write_text(TEXT[200:300])
    (folder / "c.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    (folder / "c.txt.bz2").write_bytes(bz2.compress(TEXT.encode()))
    (folder / "damaged.bz2").write_bytes(bz2.compress(TEXT.encode()) + b"more")
    records = "".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines())
    (folder / "d.jsonl").write_text(records)
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": TEXT.splitlines()})
    parquet.write_table(table, folder / "e.parquet", row_group_size=16)
    return folder


@pytest.fixture
def web(texts, monkeypatch) -> Iterator[str]:
    """The address of a server of the texts."""
    monkeypatch.setenv("no_proxy", "*")
    handler = functools.partial(Ranges, directory=str(texts))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def bucket(texts) -> Iterator[str]:
    """The same texts in a file system of fsspec, in memory."""
    files = fsspec.filesystem("memory")
    files.put(f"{texts}/", "/bucket/", recursive=True)
    yield "memory://bucket"
    files.rm("/bucket", recursive=True)


def packed(out: Path, *arguments: str) -> tuple[list[str], list[int]]:
    with tiny_shards():
        assert main(["pack", *arguments, f"--out={out}"]) == 0
        characters, starts = read_store(TextStore(str(out)))
    return characters, starts.tolist()


@pytest.mark.parametrize("name", ["a.txt", "c.txt.gz", "c.txt.bz2", "d.jsonl", "e.parquet"])
def test_a_file_at_an_address_is_packed_as_the_file(texts, web, bucket, tmp_path, name):
    options = ["--documents=files", "--field=text"] if name[0] in "de" else ["--documents=lines"]
    wanted = packed(tmp_path / "wanted", str(texts / name), *options)
    for number, address in enumerate((web, bucket)):
        assert packed(tmp_path / f"{number}", f"{address}/{name}", *options) == wanted
    if name == "a.txt":  # cut into shards, each read from its beginning
        assert len(TextStore(str(tmp_path / "0")).shards) > 10


@pytest.mark.parametrize("path", ["", "/", "/**/*.txt", "/more/*.txt"])
def test_folders_and_globs_at_an_address(texts, web, bucket, tmp_path, path):
    wanted = packed(tmp_path / "wanted", f"{texts}{path}")
    assert packed(tmp_path / "found", bucket + path) == wanted
    if path:  # a page may look like a folder
        assert packed(tmp_path / "served", web + path) == wanted


def refusal(capsys, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["pack", *arguments])
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    return code, error


def test_what_is_not_there_or_damaged_is_named_in_a_line(web, bucket, tmp_path, capsys):
    out = f"--out={tmp_path / 'store'}"
    for address in (f"{web}/nothing.txt", f"{bucket}/nothing.txt"):
        code, error = refusal(capsys, address, out)
        assert (code, "no such file" in error) == (2, True)
    for address in (f"{web}/damaged.bz2", f"{bucket}/damaged.bz2"):
        code, error = refusal(capsys, address, out)
        assert (code, "stream 2 is not valid" in error) == (2, True)
    code, error = refusal(capsys, f"{bucket}/*.csv", out)
    assert (code, "no text file there" in error) == (2, True)
    code, error = refusal(capsys, "nowhere://a/b.txt", out)
    assert (code, "no such scheme" in error) == (2, True)
    code, error = refusal(capsys, "http://127.0.0.1:9/a.txt", out)
    assert (code, "cannot be read" in error) == (4, True)


@pytest.mark.parametrize(
    ("address", "module", "package"),
    [
        ("gs://bucket/a.txt", "gcsfs", "gcsfs"),
        ("s3://bucket/a.txt", "s3fs", "s3fs"),
        ("http://127.0.0.1:9/a.txt", "fsspec.implementations.http", "charjax[data]"),
    ],
)
def test_a_scheme_whose_package_is_missing_names_it(
    address, module, package, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(known, address.partition(":")[0], raising=False)
    code, error = refusal(capsys, address, f"--out={tmp_path / 'store'}")
    assert (code, package in error.partition("(")[2]) == (4, True), error


@pytest.mark.parametrize("change", [TEXT * 2, TEXT.upper()])
def test_a_file_that_changes_is_another_text(texts, web, tmp_path, capsys, change):
    out = f"--out={tmp_path / 'store'}"
    assert main(["pack", f"{web}/a.txt", out]) == 0
    assert main(["pack", f"{web}/a.txt", out]) == 0  # nothing is left to do
    (texts / "a.txt").write_text(change)
    os.utime(texts / "a.txt", (0, 0))  # Last-Modified has seconds only
    code, error = refusal(capsys, f"{web}/a.txt", out)
    assert (code, "packed from other files" in error) == (2, True)


def slowly(call: Call) -> None:
    """Sends a byte every tenth of a second; of "/stops.txt" four, of "/short.txt" half."""
    call.answer(Content_Length="8", Connection="close")  # its body spoils what follows HEAD
    if call.path == "/short.txt":
        call.connection.sendall(b"half")
        return
    for _ in range(4 if call.path == "/stops.txt" else 8):
        call.connection.sendall(b"a")
        time.sleep(0.1)
    if call.path == "/stops.txt":
        time.sleep(0.6)


def test_a_slow_server_has_time_and_a_silent_one_has_not(serve, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(remote, "_TIMEOUT_S", 0.4)
    # That of all requests for which no other is set; it bounds the whole transfer.
    monkeypatch.setattr("aiohttp.client.DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.6))
    server = serve(slowly)
    assert main(["pack", f"{server.url}/a.txt", f"--out={tmp_path / 'a'}"]) == 0
    for path, words in (("stops.txt", "Timeout"), ("short.txt", "Error: 400, message: ")):
        code, error = refusal(capsys, f"{server.url}/{path}", f"--out={tmp_path / path}")
        assert (code, words in error) == (4, True), error


@pytest.mark.parametrize("status", ["300 Multiple Choices", "301 Moved"])
def test_a_redirect_to_nowhere_is_no_text(serve, tmp_path, capsys, status):
    server = serve(lambda call: call.answer(b"It has moved.\n", status))
    code, error = refusal(capsys, f"{server.url}/a.txt", f"--out={tmp_path / 'a'}")
    assert (code, f"answered {status[:3]}" in error) == (4, True), error
