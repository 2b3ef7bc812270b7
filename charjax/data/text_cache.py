"""The cache of large texts in memory: a text is read and encoded once, later runs read its tokens.

An entry is a file in the user's cache folder. Its name is a digest of all that decides what a text
becomes: the files' paths, sizes, times and inodes, the reading rules, and the versions of what
reads. `charjax.data.cached_text` has its content. An entry with any damage is deleted and made
again.
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
from collections.abc import Callable, Iterator
from pathlib import Path

from charjax.data.cached_text import CachedText, read_cached, write_cached
from charjax.data.file_search import TextFiles
from charjax.data.reading import ReadingRules
from charjax.errors import CharjaxError
from charjax.runtime.cache import private_cache_folder
from charjax.runtime.files import replace_file

MIN_BYTES = 1 << 24  # of the files of a text; smaller ones are not cached
MAX_BYTES = 10 << 30  # of all entries
MAX_AGE_S = 30 * 24 * 3600.0  # since an entry was used
_VERSION = 2  # of the encoding: raise it when a text is read or encoded in another way
_UNFINISHED = ".part"
_MAX_UNFINISHED_S = 24 * 3600.0
# A file system rounds times: a file changed so recently may change again without a later time.
_RECENT_NS = 2_000_000_000

_logger = logging.getLogger(__name__)


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
            found = read_cached(self._path)
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
                    write_cached(file, text)
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
