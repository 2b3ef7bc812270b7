"""The cache of large texts in memory: a text is read and encoded once, later runs read its tokens.

An entry is a file in the user's cache folder. Its name is a digest of all that decides what a text
becomes: the files' paths, sizes, times and inodes, the reading rules, and the versions of what
reads. `charjax.data.tokens.cached_text` has its content. An entry with any damage is deleted and
made again.
"""

from __future__ import annotations

import contextlib
import hashlib
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

from charjax.data.reading.rules import ReadingRules
from charjax.data.sources.file_search import TextFiles
from charjax.data.tokens.cached_text import CachedText, read_cached, write_cached
from charjax.runtime.cache import private_cache_folder
from charjax.runtime.files import replace_file
from charjax.runtime.versions import version_of

MIN_BYTES = 1 << 24  # of the files of a text; smaller ones are not cached
MAX_BYTES = 10 << 30  # of all entries
MAX_AGE_S = 30 * 24 * 3600.0  # since an entry was used
_VERSION = 4  # of the encoding: raise it when a text is read or encoded in another way
_UNFINISHED = ".part"
_MAX_UNFINISHED_S = 24 * 3600.0
# A file system rounds times: a file changed so recently may change again without a later time.
_RECENT_NS = 2_000_000_000

_logger = logging.getLogger(__name__)


def read_through(
    files: TextFiles, rules: ReadingRules, read: Callable[[], CachedText]
) -> CachedText:
    """A text from the cache; else from `read`, and then a thread puts it into the cache.

    What was logged while a text was read is logged again when it comes from the cache.

    Args:
      files: of the text.
      rules: how they are read.
      read: reads the text; its errors are those of this function.
    """
    looked_ns = time.time_ns()
    key, newest_ns, size = _key_of(files, rules)
    folder = private_cache_folder("texts") if size >= MIN_BYTES else None
    if folder is None:
        return read()
    if (found := _read_entry(folder / key)) is not None:
        return found
    with _recorded_messages() as messages:
        content, about = read()
    content.tokens.flags.writeable = False
    is_settled = newest_ns <= looked_ns - _RECENT_NS
    if is_settled and _key_of(files, rules)[0] == key:  # not changed while they were read
        text = content, about | {"messages": messages}
        start_thread(lambda: _write_entry(folder / key, text))
    return content, about


def start_thread(write: Callable[[], None]) -> None:
    """Calls a function in a thread, which the end of the process waits for."""
    threading.Thread(target=write, name="charjax-text-cache").start()


@contextlib.contextmanager
def _recorded_messages() -> Iterator[list[str]]:
    """A context that collects what `charjax.data` logs; it is logged as usual, too."""
    handler, messages = logging.Handler(), list[str]()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("charjax.data")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


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
        "version": [_VERSION, version_of("charjax"), sys.version, sys.byteorder],
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


def _read_entry(path: Path) -> CachedText | None:
    """The text of an entry; None if there is none, or a damaged one, which is deleted."""
    try:
        content, about = read_cached(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError) as error:
        _logger.info("%s: is made again: %s", path, error)
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):  # a cache that cannot be written is read all the same
        os.utime(path)  # when it was last used
    for message in about.pop("messages"):
        is_warning = message.startswith("NOTICE")
        _logger.log(logging.WARNING if is_warning else logging.INFO, "%s", message)
    return content, about


def _write_entry(path: Path, text: CachedText) -> None:
    """Writes an entry; where it fails, says so."""
    root, content = path.parent, text[0]
    try:
        size = content.tokens.nbytes + content.starts.nbytes
        _clean(root, size)
        if size > MAX_BYTES or shutil.disk_usage(root).free < 2 * size:
            _logger.info("%s: the text is not cached: no room for it", root)
            return
        number, unfinished = tempfile.mkstemp(_UNFINISHED, path.name, root)
        try:
            with open(number, "wb") as file:
                write_cached(file, text)
            replace_file(Path(unfinished), path)
        finally:
            Path(unfinished).unlink(missing_ok=True)
    except OSError as error:
        _logger.info("%s: the text is not cached: %s", root, error)


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
