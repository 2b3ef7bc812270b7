"""Files that others may have put into a folder are opened only if they are regular files."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from charjax.errors import HostError, InputError
from charjax.runtime.files import open_regular, read_regular, replace_content

WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def make_link(path: Path) -> None:
    path.symlink_to(path.with_name("target"))


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("flags", [os.O_RDONLY, WRITE], ids=["read", "write"])
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (make_link, "a link"),
        (Path.mkdir, "a folder"),
        (os.mkfifo, "not a regular file"),
        (make_socket, "not a regular file"),
    ],
    ids=["link", "folder", "pipe", "socket"],
)
def test_what_is_no_regular_file_is_neither_read_nor_written(
    tmp_path, monkeypatch, make, what, flags
):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    (tmp_path / "target").write_text("mine")
    make(Path("x"))
    with pytest.raises(InputError, match=f"x: {what}, which no run writes; remove it"):
        os.close(open_regular(Path("x"), flags))
    assert (tmp_path / "target").read_text() == "mine"


def test_a_dangling_link_is_not_followed(tmp_path):
    (tmp_path / "x").symlink_to(tmp_path / "target")
    with pytest.raises(InputError, match="a link"):
        open_regular(tmp_path / "x", WRITE)
    assert not (tmp_path / "target").exists()


def test_a_regular_file_is_opened_below_a_linked_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    os.close(open_regular(tmp_path / "link" / "x", WRITE))
    (tmp_path / "folder" / "x").write_bytes(b"12345")
    assert read_regular(tmp_path / "link" / "x", 3) == b"123"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing", os.O_RDONLY)


@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_file_that_cannot_be_replaced_stays_alone_and_is_named(tmp_path, monkeypatch, call):
    page = tmp_path / "page.html"
    page.write_bytes(b"before")

    def fails(what, *_):
        name = (what,) if isinstance(what, Path) else ()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *name)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(HostError, match=r"/page\.html: No space left on device; free disk"):
            replace_content(page, b"after")
    assert page.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["page.html"]
