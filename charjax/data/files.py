"""Finds the text files that a path names, and reads their bytes."""

from __future__ import annotations

import bz2
import contextlib
import glob
import gzip
import importlib
import logging
import lzma
import os
import re
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from charjax.data.named_corpora import RawText
from charjax.errors import HostError, InputError
from charjax.runtime.display import listed
from charjax.runtime.paths import expand_path

_BINARY_SAMPLE = 8192  # a file with a NUL in its first bytes is taken for binary
# Files and folders of a run, left out if a run.json is beside them; see `charjax.workdir.Workdir`.
RUN_FILES = re.compile(
    r"(run\.json|metrics\.jsonl|samples\.txt|curves\.png|process-.*\.log|events\.out\..*)"
)
RUN_FOLDERS = ("checkpoints",)
_CODEC_ERRORS = (zlib.error, lzma.LZMAError, zipfile.BadZipFile, EOFError, RuntimeError)

_logger = logging.getLogger(__name__)


class TextFiles(NamedTuple):
    """The files that a path names.

    Attributes:
      paths: in the order in which they are read.
      from_search: whether some were found in a folder or by a glob, not named one by one; then
        binary files are left out.
    """

    paths: tuple[str, ...]
    from_search: bool


def find_files(given: str, option: str) -> TextFiles:
    """Finds the files of a path: a file, a folder, a glob, or several of these, comma-separated.

    A folder means the glob `FOLDER/**/*.txt`. Suffixes match in upper and lower case. Hidden
    files, files that a run of charjax wrote, and links to a file that was found already are left
    out; their number is logged.

    Args:
      given: the path. If it exists as a whole, commas are part of its name.
      option: the flag or config field that gave it, for messages.

    Raises:
      InputError: there is no such file, or no text in the folder.
    """
    is_list = "," in given and not os.path.exists(expand_path(given, option))
    paths: dict[str, None] = {}
    left_out: Counter[str] = Counter()
    from_search = False
    for part in given.split(",") if is_list else [given]:
        path = expand_path(part, option)
        if os.path.isdir(path):
            pattern = os.path.join(glob.escape(path), "**", "*.txt")
        elif glob.has_magic(path) and not os.path.exists(path):
            pattern = path
        else:
            paths[path] = None
            continue
        from_search = True
        found = _search(pattern, left_out)
        if not found:
            raise InputError(
                f"{option}={given!r}: no text file there{_list(left_out, ', but')}; give a file, "
                "a folder with *.txt, or a glob such as 'texts/**/*.txt'"
            )
        paths |= dict.fromkeys(found)
    if left_out.total():
        _logger.info("%s: left out%s", given, _list(left_out))
    return TextFiles(tuple(paths), from_search)


def read_files(files: TextFiles, option: str, *, are_utf8: bool) -> Iterator[RawText]:
    """Reads files one at a time, decompressed according to their suffixes, undecoded.

    Args:
      files: from `find_files`.
      option: the flag or config field that gave them, for messages.
      are_utf8: whether texts are UTF-8. Only then a binary file can be recognised; if it was found
        by a search, it is left out, which is logged.

    Raises:
      InputError: a file does not exist, or is damaged.
      HostError: a file cannot be read.
    """
    binary = []
    for path in files.paths:
        for text in _read_path(path, option):
            if are_utf8 and files.from_search and _is_binary(text.data):
                binary.append(text.origin)
            else:
                yield text
    if binary:
        _logger.info("left out %d binary files: %s", len(binary), listed(binary, most=3))


def _search(pattern: str, left_out: Counter[str]) -> list[str]:
    """The text files that a glob matches, sorted; counts in `left_out` the others by reason."""
    pattern = re.sub(r"\.[A-Za-z]+$", _in_any_case, pattern)
    visible = {p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)}
    matches = glob.glob(pattern, recursive=True, include_hidden=True)
    left_out["hidden"] += sum(p not in visible and os.path.isfile(p) for p in matches)
    found: dict[str, str] = {}  # by the resolved path
    for path in sorted(visible):
        if _is_written_by_charjax(Path(path)):
            left_out["written by charjax"] += 1
        elif found.setdefault(os.path.realpath(path), path) != path:
            left_out["another name of the same file"] += 1
    return list(found.values())


def _in_any_case(suffix: re.Match[str]) -> str:
    return "." + "".join(f"[{c.lower()}{c.upper()}]" for c in suffix[0][1:])


def _is_written_by_charjax(path: Path) -> bool:
    """Whether the file is one that a run wrote into its folder."""
    if RUN_FILES.fullmatch(path.name) and (path.parent / "run.json").exists():
        return True
    return any(
        folder.name in RUN_FOLDERS and (folder.parent / "run.json").exists()
        for folder in path.parents
    )


def _is_binary(data: bytes) -> bool:
    """Whether the bytes start with a NUL among them, and are not UTF-8, UTF-16 or UTF-32."""
    if b"\0" not in data[:_BINARY_SAMPLE] or data.startswith(
        (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe")
    ):
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def _list(left_out: Counter[str], before: str = "") -> str:
    """`before` and " 3 files: 2 hidden, 1 written by charjax"; "" if no file was left out."""
    if not (total := left_out.total()):
        return ""
    reasons = ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n)
    return f"{before} {total} file{'s' if total > 1 else ''}: {reasons}"


def _read_path(path: str, option: str) -> Iterator[RawText]:
    """The texts in a file: one, or the members of a zip archive."""
    try:
        if path.lower().endswith(".zip"):
            yield from _zip_members(path)
        else:
            yield RawText(path, _read(path))
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise InputError(f"{option}={path!r}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{option}={path!r}: is a folder; name a file in it") from error
    except OSError as error:
        raise HostError(f"{path}: cannot be read ({error.strerror}); check its rights") from error


def _read(path: str) -> bytes:
    """The bytes of a file, decompressed if its suffix says so."""
    opener = _OPENERS.get(Path(path).suffix.lower())
    if opener is None:
        return Path(path).read_bytes()
    with open(path, "rb") as file, _refuse_damage(path), opener(file) as decompressed:
        data: bytes = decompressed.read()
        return data


def _zip_members(path: str) -> Iterator[RawText]:
    """The visible *.txt members of an archive, sorted by name; or its only member."""
    with _refuse_damage(path), zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if not name.endswith("/"))
        texts = [n for n in names if n.lower().endswith(".txt") and not _is_hidden(n)]
        if not texts and len(names) != 1:
            raise InputError(f"{path}: has no *.txt among its {len(names)} files; unpack it")
        for name in texts or names:
            yield RawText(f"{path}/{name}", archive.read(name))


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
