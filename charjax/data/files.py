"""Reads the bytes of text files, decompressed, from disks and addresses."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import importlib
import io
import logging
import lzma
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from charjax.data import remote
from charjax.data.decoding import BYTE_ORDER_MARKS, RawText
from charjax.data.file_search import TextFiles
from charjax.errors import HostError, InputError
from charjax.runtime.display import counted, listed
from charjax.runtime.paths import is_address, starting_folder

_BLOCK = 1 << 20  # bytes read at a time
_BINARY_SAMPLE = 8192  # a file with a NUL in its first bytes is taken for binary
_CODEC_ERRORS = (zlib.error, lzma.LZMAError, zipfile.BadZipFile, EOFError, RuntimeError)

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
        with _as_charjax_errors(self.path, self.option), self._open() as file:
            if not self.end:
                yield from iter(partial(file.read, _BLOCK), b"")
                return
            file.seek(self.begin)
            for begin in range(self.begin, self.end, _BLOCK):
                yield file.read(min(_BLOCK, self.end - begin))

    @contextlib.contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        with _refuse_damage(self.path):
            if self.member:
                with (
                    open_binary(self.path, seekable=True) as opened,
                    zipfile.ZipFile(opened) as archive,
                    archive.open(self.member) as file,
                ):
                    yield file
            elif opener := _OPENERS.get(Path(self.path).suffix.lower()):
                with open_binary(self.path) as compressed, opener(compressed) as file:
                    yield file
            else:
                with open_binary(self.path, seekable=bool(self.begin)) as file:
                    yield file


def read_files(files: TextFiles, option: str, *, are_utf8: bool) -> Iterator[RawText]:
    """The undecoded files, decompressed according to their suffixes; each is read when iterated.

    Args:
      files: from `charjax.data.file_search.find_files`.
      option: the flag or config field that gave them, for messages.
      are_utf8: whether texts are UTF-8. Only then a binary file can be recognised; if it was found
        by a search, it is left out, which is logged.

    Raises:
      InputError: a file does not exist, or is damaged.
      HostError: a file cannot be read.
    """
    binary = []
    for path in files.paths:
        for text in read_file(path, option):
            if are_utf8 and files.from_search and _is_binary(text.blocks):
                binary.append(text.origin)
            else:
                yield text
    _log_binary(binary)


def text_paths(files: TextFiles, option: str) -> tuple[str, ...]:
    """The paths without those of binary files that a search found, which are logged."""
    if not files.from_search:
        return files.paths
    binary = [p for p in files.paths if all(_is_binary(t.blocks) for t in read_file(p, option))]
    _log_binary(binary)
    left_out = set(binary)
    return tuple(path for path in files.paths if path not in left_out)


def read_file(path: str, option: str) -> Iterator[RawText]:
    """The texts in a file: one, or the members of a zip archive; the errors of `read_files`."""
    if path.lower().endswith(".zip"):
        with _as_charjax_errors(path, option):
            members = _zip_members(path)
        for member in members:
            yield RawText(f"{path}/{member}", _FileBlocks(path, option, member))
    else:
        yield RawText(path, _FileBlocks(path, option))


def read_range(path: str, option: str, begin: int, end: int) -> RawText:
    """The bytes `begin` to `end` of a file that is not compressed; the errors of `read_files`."""
    return RawText(path, _FileBlocks(path, option, begin=begin, end=end), offset=begin)


def open_binary(path: str, *, seekable: bool = False) -> io.BufferedReader:
    """A file, or one at an address, opened for reading; see `charjax.data.remote`."""
    return remote.open_address(path, seekable=seekable) if is_address(path) else open(path, "rb")


def is_compressed(path: str) -> bool:
    """Whether a file is decompressed when it is read, by its suffix."""
    return Path(path).suffix.lower() in (*_OPENERS, ".zip")


def _log_binary(names: list[str]) -> None:
    if names:
        _logger.info("left out %s: %s", counted(len(names), "binary file"), listed(names, most=3))


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


@contextlib.contextmanager
def _as_charjax_errors(path: str, option: str) -> Iterator[None]:
    """Turns errors of the file system into InputErrors and HostErrors that name the file."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: it has a NUL
        raise InputError(
            f"{option}={path!r}: no such file{starting_folder(path)}; check the path"
        ) from error
    except IsADirectoryError as error:
        raise InputError(f"{option}={path!r}: is a folder; name a file in it") from error
    except OSError as error:
        raise HostError(f"{path}: cannot be read ({error.strerror}); check its rights") from error


def _zip_members(path: str) -> list[str]:
    """The visible *.txt members of an archive, sorted by name; or its only member.

    Of members of one name, which an update of the archive leaves, the last one is read.
    """
    with (
        _refuse_damage(path),
        open_binary(path, seekable=True) as file,
        zipfile.ZipFile(file) as archive,
    ):
        names = sorted({name for name in archive.namelist() if not name.endswith("/")})
    texts = [n for n in names if n.lower().endswith(".txt") and not _is_hidden(n)]
    if not texts and len(names) != 1:
        raise InputError(f"{path}: has no *.txt among its {len(names)} files; unpack it")
    return texts or names


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


@contextlib.contextmanager
def _refuse_damage(path: str) -> Iterator[None]:
    """Turns errors of decompression into an InputError that names the file."""
    try:
        yield
    except Exception as error:
        is_of_codec = isinstance(error, _CODEC_ERRORS) or type(error).__name__ == "ZstdError"
        is_without_errno = isinstance(error, OSError) and error.errno is None
        if not (is_of_codec or is_without_errno):  # an error of the file system
            raise
        raise InputError(
            f"{path}: cannot be decompressed ({error}); the file is damaged, or its suffix is wrong"
        ) from error


def _open_zstd(file: IO[bytes]) -> IO[bytes]:
    module = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    opened: IO[bytes] = importlib.import_module(module).open(file)
    return opened


_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstd,
}
