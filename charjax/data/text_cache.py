"""The cache of large texts in memory: a text is read and encoded once, later runs read its tokens.

An entry is a file in the user's cache folder. Its name is a digest of all that decides what a text
becomes: the files' paths, sizes, times and inodes, the reading rules, and the versions of what
reads. Its first line is a CRC-32 and JSON, which describes the text and has a CRC-32 of each part
of the arrays; then come the bytes of the arrays. A reader compares every CRC-32, and maps the
arrays to memory without a copy. An entry with any damage is deleted and made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from charjax.data.file_search import TextFiles
from charjax.data.reading import ReadingRules
from charjax.data.tokens import EncodedText
from charjax.errors import CharjaxError
from charjax.runtime.cache import private_cache_folder
from charjax.runtime.files import replace_file

MIN_BYTES = 1 << 24  # of the files of a text; smaller ones are not cached
MAX_BYTES = 10 << 30  # of all entries
MAX_AGE_S = 30 * 24 * 3600.0  # since an entry was used
_VERSION = 2  # of the encoding: raise it when a text is read or encoded in another way
_PART = 1 << 22  # bytes that have one CRC-32
_THREADS = 4  # that compare parts
_ALIGNMENT = 8  # bytes, of the arrays in the file
_UNFINISHED = ".part"
_MAX_UNFINISHED_S = 24 * 3600.0
# A file system rounds times: a file changed so recently may change again without a later time.
_RECENT_NS = 2_000_000_000

_logger = logging.getLogger(__name__)


class CachedText(NamedTuple):
    """A text in the cache.

    Attributes:
      content: its tokens.
      characters, chars, sha256, notice, rules: those of `charjax.data.corpus.Corpus`.
      messages: what was logged while it was read.
    """

    content: EncodedText
    characters: Sequence[str]
    chars: int
    sha256: str
    notice: str
    rules: ReadingRules
    messages: tuple[str, ...]


@contextlib.contextmanager
def recorded_messages() -> Iterator[list[str]]:
    """A context that collects what the modules of this package log; it is logged as usual, too."""
    handler, messages = logging.Handler(), list[str]()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(__package__)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def start_thread(write: Callable[[], None]) -> None:
    """Calls a function in a thread, which the end of the process waits for."""
    threading.Thread(target=write, name="charjax-text-cache").start()


class CacheEntry:
    """A text's entry in the cache, which need not exist yet."""

    def __init__(self, files: TextFiles, rules: ReadingRules) -> None:
        """Looks at the files, and reads none.

        Args:
          files: of the text.
          rules: how they are read.
        """
        self._files, self._rules = files, rules
        self._looked_ns = time.time_ns()
        self._key, self._newest_ns, self._size = _key_of(files, rules)
        folder = private_cache_folder("texts") if self._size >= MIN_BYTES else None
        self._path = folder and folder / self._key

    @property
    def is_usable(self) -> bool:
        """Whether the text is large enough to be cached, and there is a folder for it."""
        return self._path is not None

    def read(self) -> CachedText | None:
        """The text; None if it is not in the cache, or damaged there.

        Raises:
          MemoryError: memory does not suffice.
        """
        if self._path is None or not self._path.is_file():
            return None
        try:
            found = _read(self._path)
            os.utime(self._path)  # when it was last used
        except (CharjaxError, OSError, ValueError, LookupError) as error:
            _logger.info("%s: is made again: %s", self._path, error)
            with contextlib.suppress(OSError):
                self._path.unlink()
            return None
        return found

    def start_write(self, text: CachedText) -> None:
        """Puts a text into the cache, in a thread; its tokens must not be changed from now on."""
        text.content.tokens.flags.writeable = False
        start_thread(lambda: self._write(text))

    def _write(self, text: CachedText) -> None:
        """Writes an entry, unless the files have changed just now; where it fails, says so."""
        if self._path is None or self._newest_ns > self._looked_ns - _RECENT_NS:
            return
        if _key_of(self._files, self._rules)[0] != self._key:  # changed while they were read
            return
        root = self._path.parent
        try:
            size = text.content.tokens.nbytes + text.content.starts.nbytes
            _clean(root, size)
            if size > MAX_BYTES or shutil.disk_usage(root).free < 2 * size:
                _logger.info("%s: the text is not cached: no room for it", root)
                return
            number, unfinished = tempfile.mkstemp(_UNFINISHED, self._key, root)
            try:
                with open(number, "wb") as file:
                    _write(file, text)
                replace_file(Path(unfinished), self._path)
            finally:
                Path(unfinished).unlink(missing_ok=True)
        except OSError as error:
            _logger.info("%s: the text is not cached: %s", root, error)


def _key_of(files: TextFiles, rules: ReadingRules) -> tuple[str, int, int]:
    """The digest of what decides a text; the time of its newest file, and the size of all.

    The time of a file is the later one of its content's and its inode's, which no program can set.
    """
    try:
        stats = [os.stat(path) for path in files.paths]
    except (OSError, ValueError):  # reading them will say why
        return "", 0, 0
    names = ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_dev")
    about = {
        "version": [_VERSION, _charjax_version(), sys.version, sys.byteorder],
        "rules": rules.to_json(),
        "from_search": files.from_search,
        "files": [
            [path, os.path.realpath(path), *(getattr(stat, name) for name in names)]
            for path, stat in zip(files.paths, stats, strict=True)
        ],
    }
    newest = max(max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    return key, newest, sum(stat.st_size for stat in stats)


def _charjax_version() -> str:
    try:
        return importlib.metadata.version("charjax")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _read(path: Path) -> CachedText:
    with open(path, "rb") as file:
        checksum, _, data = file.readline().partition(b" ")
        begin = file.tell()
    if int(checksum, 16) != zlib.crc32(data):
        raise ValueError("its first line is damaged")
    about = json.loads(data)
    starts = _map_array(path, begin, about["starts"])
    tokens = _map_array(path, begin + starts.nbytes, about["tokens"])
    return CachedText(
        EncodedText(tokens, tuple(about["alphabet"]), starts),
        about["characters"],
        about["chars"],
        about["sha256"],
        about["notice"],
        ReadingRules.from_json(about["rules"]),
        tuple(about["messages"]),
    )


def _write(file: IO[bytes], text: CachedText) -> None:
    tokens, alphabet, starts = text.content
    about = text._asdict() | {
        "content": None,
        "characters": "".join(text.characters),
        "rules": text.rules.to_json(),
        "alphabet": alphabet,
        "starts": _describe_array(starts),
        "tokens": _describe_array(tokens),
    }
    data = json.dumps(about).encode()
    data += b" " * (-(len(data) + 10) % _ALIGNMENT) + b"\n"
    file.write(b"%08x %s" % (zlib.crc32(data), data))
    file.write(starts.data)
    file.write(tokens.data)


def _describe_array(array: np.ndarray) -> dict[str, Any]:
    """The JSON values that `_map_array` needs."""
    values = array.view(np.uint8)
    checksums = [zlib.crc32(values[part].data) for part in _parts(values.size)]
    return {"dtype": array.dtype.name, "size": array.size, "crc32": checksums}


def _map_array(path: Path, begin: int, about: Mapping[str, Any]) -> np.ndarray:
    """The array that begins at a byte of a file; changes of it stay in memory.

    Raises:
      ValueError: the file is too short, or a part differs from its CRC-32.
      OSError: the file cannot be read.
    """
    array = np.asarray(np.memmap(path, about["dtype"], "c", begin, (about["size"],)))

    def check(part: slice, checksum: int) -> None:
        with open(path, "rb") as file:
            file.seek(begin + part.start)
            if zlib.crc32(file.read(part.stop - part.start)) != checksum:
                raise ValueError(f"it is damaged after byte {begin + part.start:,}")

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(check, _parts(array.nbytes), about["crc32"]):
            pass
    return array


def _parts(size: int) -> list[slice]:
    """The slices of that many bytes which have a CRC-32 each."""
    return [slice(begin, min(begin + _PART, size)) for begin in range(0, size, _PART)]


def _clean(root: Path, room_for: int) -> None:
    """Deletes what was not used for long, and the least recently used where there is no room."""
    now, room = time.time(), MAX_BYTES - room_for
    for used, entry in sorted(((p.stat().st_mtime, p) for p in root.iterdir()), reverse=True):
        is_unfinished = entry.name.endswith(_UNFINISHED)
        room -= entry.stat().st_size
        is_old = now - used > (_MAX_UNFINISHED_S if is_unfinished else MAX_AGE_S)
        if is_old or (room < 0 and not is_unfinished):
            with contextlib.suppress(OSError):  # Windows deletes no file that is mapped
                entry.unlink()
