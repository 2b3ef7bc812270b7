"""Which files are text, and how compressed ones are read."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import lzma
import os
import zipfile
from pathlib import Path

import pytest
from backports import zstd

from charjax.data.sources.file_search import RUN_FILES, find_files
from charjax.data.sources.files import read_files, texts_in_file
from charjax.errors import InputError
from charjax.workdir import Workdir


def read(path: Path | str) -> dict[str, bytes]:
    """{path: bytes} of the texts at a path."""
    files = read_files(find_files(str(path), "--file"), "--file", are_utf8=True)
    return {text.origin: b"".join(text.blocks) for text in files}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("b.txt", "a/c.TXT", "a/.d/e.txt", ".f.txt", "g.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def names(folder: Path, found: dict[str, bytes]) -> list[str]:
    return [Path(path).relative_to(folder).as_posix() for path in found]


@pytest.mark.parametrize("pattern", ["", "/**/*.txt", "/**/*.TXT"])
def test_a_folder_and_its_glob_agree_and_leave_out_what_is_hidden(folder, pattern, caplog):
    caplog.set_level("INFO")
    assert names(folder, read(f"{folder}{pattern}")) == ["a/c.TXT", "b.txt"]
    assert caplog.messages == [f"{folder}{pattern}: left out 2 files: 2 hidden"]


def test_a_hidden_file_is_read_where_it_is_named(folder):
    assert names(folder, read(folder / ".f.txt")) == [".f.txt"]
    assert names(folder, read(f"{folder}/a/.d/*.txt")) == ["a/.d/e.txt"]


def test_what_a_run_wrote_is_no_text(folder, caplog):
    caplog.set_level("INFO")
    run = Workdir(folder / "run")
    run.checkpoints.mkdir(parents=True)
    texts = (run.samples, run.input, run.checkpoints / "x.txt")
    for path in (run.run_json, *texts, run.path / "mine.txt"):
        path.write_text("x")
    assert names(folder, read(folder)) == ["a/c.TXT", "b.txt", "run/mine.txt"]
    assert "3 written by charjax" in caplog.text
    assert all(
        RUN_FILES.fullmatch(path.name)
        for path in (run.run_json, run.choice, run.input, run.metrics, run.samples, run.curves)
    )


def test_a_samples_txt_of_another_program_is_text(folder):
    (folder / "samples.txt").write_text("mine")
    assert "samples.txt" in names(folder, read(folder))


def test_a_file_is_read_once_whatever_its_names(folder):
    (folder / "z.txt").symlink_to(folder / "b.txt")
    (folder / "loop").symlink_to(folder)
    assert names(folder, read(folder)) == ["a/c.TXT", "b.txt"]


def test_a_broken_link_is_said(folder, caplog):
    caplog.set_level("INFO")
    (folder / "y.txt").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder)
    assert names(folder, read(folder)) == ["a/c.TXT", "b.txt"]
    assert "1 behind a broken link" in caplog.text


@pytest.mark.parametrize("pattern", ["", "/**/*.txt", "/a/**"])
def test_a_folder_that_cannot_be_listed_is_said(folder, pattern, caplog, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(str(path).rstrip("/")) in ("a", ".d"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with contextlib.suppress(InputError):
        read(f"{folder}{pattern}")
    (notice,) = [m for m in caplog.messages if "cannot be listed" in m]
    assert str(folder / "a") in notice


def test_binary_files_of_a_folder_are_left_out_and_named(folder, caplog):
    caplog.set_level("INFO")
    (folder / "binary.txt").write_bytes(b"\x7fELF\0\xff" * 100)
    (folder / "nul.txt").write_bytes(b"a\0b")
    (folder / "utf16.txt").write_text("text", "utf-16")
    found = names(folder, read(folder))
    assert found == ["a/c.TXT", "b.txt", "nul.txt", "utf16.txt"]
    assert "left out 1 binary file:" in caplog.text
    assert "binary.txt" in caplog.text
    assert read(folder / "binary.txt")  # where it is named, the user is asked what it is


def test_several_paths_have_commas_between(folder):
    (folder / "x,y.txt").write_text("comma")
    assert names(folder, read(f"{folder}/b.txt,{folder}/a")) == ["b.txt", "a/c.TXT"]
    assert names(folder, read(folder / "x,y.txt")) == ["x,y.txt"]
    for paths in ("b.txt,", ",b.txt", "b.txt,,a"):
        with pytest.raises(InputError, match=f"='{paths}': a comma without a path beside it"):
            read(paths)


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.compress}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_are_read_and_damaged_ones_named(tmp_path, suffix):
    data = b"once upon a time\n" * 1000
    path = tmp_path / f"a.txt{suffix.upper()}"
    compressed = COMPRESS[suffix](data)
    path.write_bytes(compressed)
    assert read(path) == {str(path): data}
    for damaged in (*(compressed[:end] for end in range(len(compressed))), b"not compressed"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{path}: cannot be read .* damaged"):
            read(path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_all_streams_of_a_compressed_file_are_read_and_what_is_none_is_refused(tmp_path, suffix):
    one, two = (COMPRESS[suffix](text) for text in (b"one\n", b"two\n" * 2_000_000))
    path = tmp_path / f"a.txt{suffix}"
    padding = {".zst": b""}.get(suffix, b"\0" * 8)  # Zstandard has none
    path.write_bytes(one + padding + two + one + padding)
    assert read(path) == {str(path): b"one\n" + b"two\n" * 2_000_000 + b"one\n"}
    for after in (b"x", b"text that is not compressed\n" * 100_000, two[:-1], padding + b"x"):
        path.write_bytes(one + after)
        with pytest.raises(InputError, match=f"{path}: cannot be read .* damaged"):
            read(path)


def test_the_texts_of_a_zip_archive_are_read_in_order(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("b.txt", "a/A.TXT", "c.md", "__MACOSX/a.txt", ".h.txt"):
            archive.writestr(name, name)
    assert read(path) == {f"{path}/a/A.TXT": b"a/A.TXT", f"{path}/b.txt": b"b.txt"}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("only.csv", "1")
    assert read(path) == {f"{path}/only.csv": b"1"}
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="the file is damaged"):
        read(path)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_of_two_members_of_one_name_the_newer_one_is_read_once(tmp_path):
    path = tmp_path / "updated.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for content in ("old", "new"):
            archive.writestr("a.txt", content)
    texts = [(text.origin, b"".join(text.blocks)) for text in texts_in_file(str(path), "--file")]
    assert texts == [(f"{path}/a.txt", b"new")]
