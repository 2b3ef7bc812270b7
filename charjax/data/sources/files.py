"""Reads the bytes of text files, decompressed, from disks and addresses."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import importlib
import itertools
import logging
import lzma
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from charjax.data.sources import remote
from charjax.data.sources.file_search import TextFiles
from charjax.data.sources.raw_text import BYTE_ORDER_MARKS, RawText
from charjax.data.sources.read_errors import reading_errors
from charjax.errors import InputError
from charjax.runtime.display import counted, listed
from charjax.runtime.paths import is_address

_BLOCK = 1 << 20  # bytes read at a time
_BINARY_SAMPLE = 8192  # a file with a NUL in its first bytes is taken for binary

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _FileBlocks:
    """The bytes of a file, or of a member of a zip archive, decompressed, in blocks.

    Attributes:
      path: the file.
      option: the flag or config field that gave it, for messages.
      member: the name of the member; "" for a file that is no zip archive.
      begin: the first byte to read, of a file that is not compressed.
      end: the byte after the last one to read; 0: to the end.
    """

    path: str
    option: str
    member: str = ""
    begin: int = 0
    end: int = 0

    def __iter__(self) -> Iterator[bytes]:
        is_seekable = bool(self.member or self.begin)
        with open_binary(self.path, self.option, seekable=is_seekable) as file:
            if self.member:
                with zipfile.ZipFile(file) as archive, archive.open(self.member) as member:
                    yield from blocks_of(member)
            elif self.end:
                file.seek(self.begin)
                for begin in range(self.begin, self.end, _BLOCK):
                    yield file.read(min(_BLOCK, self.end - begin))
            else:
                yield from _DECOMPRESSORS.get(Path(self.path).suffix.lower(), blocks_of)(file)


def read_files(files: TextFiles, option: str, *, are_utf8: bool) -> Iterator[RawText]:
    """The undecoded files, decompressed according to their suffixes; each is read when iterated.

    Args:
      files: from `charjax.data.sources.file_search.find_files`.
      option: the flag or config field that gave them, for messages.
      are_utf8: whether texts are UTF-8; see `text_paths`.

    Raises:
      InputError: a file does not exist, or is damaged.
      HostError: a file cannot be read.
    """
    for path in text_paths(files, option, are_utf8=are_utf8):
        yield from texts_in_file(path, option)


def text_paths(files: TextFiles, option: str, *, are_utf8: bool) -> Iterator[str]:
    """The paths without those of binary files that a search found, which are logged.

    Only if texts are UTF-8, a binary file can be recognised. The errors are those of `read_files`.
    """
    binary = []
    may_be_binary = are_utf8 and files.from_search
    for path in files.paths:
        if may_be_binary and all(_is_binary(text.blocks) for text in texts_in_file(path, option)):
            binary.append(path)
        else:
            yield path
    if binary:
        found = counted(len(binary), "binary file")
        _logger.info("left out %s: %s", found, listed(binary, most=3))


def texts_in_file(path: str, option: str) -> Iterator[RawText]:
    """The texts in a file: one, or the members of a zip archive; the errors of `read_files`."""
    if path.lower().endswith(".zip"):
        for member in _zip_members(path, option):
            yield RawText(f"{path}/{member}", _FileBlocks(path, option, member))
    else:
        yield RawText(path, _FileBlocks(path, option))


def read_range(path: str, option: str, begin: int, end: int) -> RawText:
    """The bytes `begin` to `end` of a file that is not compressed; the errors of `read_files`."""
    return RawText(path, _FileBlocks(path, option, begin=begin, end=end), offset=begin)


@contextlib.contextmanager
def open_binary(path: str, option: str, *, seekable: bool) -> Iterator[Any]:
    """A file on a disk or at an address, open for reading, in a context of `reading_errors`."""
    with reading_errors(path, option), _open(path, seekable) as file:
        yield file


def _open(path: str, seekable: bool) -> Any:
    return remote.open_address(path, seekable) if is_address(path) else open(path, "rb")


def blocks_of(file: Any) -> Iterator[bytes]:
    """The bytes of an open file, in blocks."""
    return iter(partial(file.read, _BLOCK), b"")


def is_compressed(path: str) -> bool:
    """Whether a file is decompressed when it is read, by its suffix."""
    return Path(path).suffix.lower() in (*_DECOMPRESSORS, ".zip")


def _is_binary(blocks: Iterable[bytes]) -> bool:
    """Whether a NUL is among the first bytes, and they are not UTF-8, UTF-16 or UTF-32."""
    head = next(iter(blocks), b"")[:_BINARY_SAMPLE]
    if b"\0" not in head or head.startswith(tuple(mark for mark, _ in BYTE_ORDER_MARKS)):
        return False
    try:
        for _ in codecs.iterdecode(blocks, "utf-8"):
            pass
    except UnicodeDecodeError:
        return True
    return False


def _zip_members(path: str, option: str) -> list[str]:
    """The visible *.txt members of an archive, sorted by name; or its only member.

    Of members of one name, which an update of the archive leaves, the last one is read.
    """
    with open_binary(path, option, seekable=True) as file, zipfile.ZipFile(file) as archive:
        names = sorted({name for name in archive.namelist() if not name.endswith("/")})
    texts = [n for n in names if n.lower().endswith(".txt") and not _is_hidden(n)]
    if not texts and len(names) != 1:
        raise InputError(f"{path}: has no *.txt among its {len(names)} files; unpack it")
    return texts or names


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _gzip(file: Any) -> Iterator[bytes]:
    stream = gzip.GzipFile(fileobj=file)
    yield from blocks_of(stream)
    if stream.mtime is None:  # no header: gzip reads an empty file without an error
        raise EOFError("compressed stream 1 has no end")


def _zstd(file: Any) -> Iterator[bytes]:
    module = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return blocks_of(importlib.import_module(module).open(file))


def _compressed_streams(make_decompressor: Callable[[], Any], file: Any) -> Iterator[bytes]:
    """The bytes of all compressed streams of a file, of which NULs after each are padding.

    `bz2.BZ2File` and `lzma.LZMAFile` end at the first bytes that start no stream, without an error.
    """
    data = file.read(_BLOCK)
    for number in itertools.count(1):
        decompressor = make_decompressor()
        while not decompressor.eof:
            if decompressor.needs_input and not (data := data or file.read(_BLOCK)):
                raise EOFError(f"compressed stream {number} has no end")
            try:
                block = decompressor.decompress(data, _BLOCK)
            except (OSError, lzma.LZMAError):
                raise RuntimeError(f"compressed stream {number} is not valid") from None
            if block:
                yield block
            data = b""
        data = decompressor.unused_data
        while not (data := data.lstrip(b"\0")):
            if not (data := file.read(_BLOCK)):
                return


# How the bytes of an open file are decompressed, by its suffix.
_DECOMPRESSORS: dict[str, Callable[[Any], Iterator[bytes]]] = {
    ".gz": _gzip,
    ".bz2": partial(_compressed_streams, bz2.BZ2Decompressor),
    ".xz": partial(_compressed_streams, lzma.LZMADecompressor),
    ".zst": _zstd,
}
