"""The cache of large texts in memory: a text that was read and encoded once is read in packed form.

An entry is a store of one shard, see `charjax.data.store`, in the user's cache folder. Its name is
a digest of all that decides what a text becomes: the files' paths, sizes, times and inodes, the
reading rules, and the versions of what reads. TensorStore checks the crc32c of each chunk that it
reads; an entry with any damage is deleted and made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from charjax.data.files import TextFiles
from charjax.data.reading import ReadingRules
from charjax.data.store import (
    FILE_TOKENS,
    FORMAT,
    INDEX,
    LAYOUT,
    Index,
    Shard,
    ShardRecord,
    TextStore,
    array_spec,
    index_bytes,
    open_files,
    record_bytes,
    record_name,
    to_bytes,
)
from charjax.data.tokens import BOUNDARY, EncodedText
from charjax.errors import CharjaxError
from charjax.runtime.cache import private_cache_folder
from charjax.runtime.files import as_os_errors

MIN_BYTES = 1 << 24  # of the files of a text; smaller ones are not cached
MAX_BYTES = 10 << 30  # of all entries
MAX_AGE_S = 30 * 24 * 3600.0  # since an entry was used
_VERSION = 1  # of the encoding: raise it when a text is read or encoded in another way
_AHEAD = 2  # parts that are read or written at once
_UNFINISHED = ".part"
_MAX_UNFINISHED_S = 24 * 3600.0
# A file changed so recently may change again at the same time, as its file system tells it.
_RECENT_NS = 2_000_000_000

_logger = logging.getLogger(__name__)


class CachedText(NamedTuple):
    """A text in the cache.

    Attributes:
      content: its tokens.
      characters: as the other attributes up to `rules`, see `charjax.data.corpus.Corpus`.
      chars: how many characters it has.
      sha256: of its UTF-8, as it was read.
      notice: a warning to the user about it, or "".
      rules: how it was read.
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
    threading.Thread(target=write, name="charjax-packed-cache").start()


class CacheEntry:
    """The place of a text in the cache, where it may be or not."""

    def __init__(self, files: TextFiles, rules: ReadingRules) -> None:
        """Looks at the files, and reads none.

        Args:
          files: of the text.
          rules: how they are read.
        """
        self._files, self._rules = files, rules
        self._looked_ns = time.time_ns()
        self._key, self._newest_ns, self._size = _key_of(files, rules)
        folder = private_cache_folder("packed") if self._size >= MIN_BYTES else None
        self._folder = folder and folder / self._key

    @property
    def is_usable(self) -> bool:
        """Whether a text of this size is cached, and there is a folder for it."""
        return self._folder is not None

    def read(self) -> CachedText | None:
        """The text; None if it is not in the cache, or damaged there.

        Raises:
          MemoryError: memory does not suffice.
        """
        if self._folder is None or not self._folder.is_dir():
            return None
        try:
            found = _read(self._folder)
            os.utime(self._folder)  # when it was last used
        except (CharjaxError, OSError, ValueError) as error:
            _logger.info("%s: is made again: %s", self._folder, error)
            shutil.rmtree(self._folder, ignore_errors=True)
            return None
        return found

    def start_write(self, text: CachedText) -> None:
        """Puts a text into the cache, in a thread; its tokens must not be changed from now on."""
        text.content.tokens.flags.writeable = False
        start_thread(lambda: self._write(text))

    def _write(self, text: CachedText) -> None:
        """Writes an entry, unless the files have changed just now; where it fails, says so."""
        if self._folder is None or self._newest_ns > self._looked_ns - _RECENT_NS:
            return
        if _key_of(self._files, self._rules)[0] != self._key:  # changed while they were read
            return
        unfinished = None
        try:
            root = self._folder.parent
            size = text.content.tokens.nbytes + text.content.starts.nbytes
            _clean(root, size)
            if size > MAX_BYTES or shutil.disk_usage(root).free < 2 * size:
                _logger.info("%s: the text is not cached: no room for it", root)
                return
            unfinished = Path(tempfile.mkdtemp(_UNFINISHED, self._key, root))
            _write(unfinished, text)
            unfinished.rename(self._folder)
        except (CharjaxError, OSError, ValueError) as error:
            if not self._folder.is_dir():  # else another process was quicker
                reason = f"{error}".splitlines()[0]
                _logger.info("%s: the text is not cached: %s", self._folder.parent, reason)
        finally:
            if unfinished is not None:
                shutil.rmtree(unfinished, ignore_errors=True)


def _key_of(files: TextFiles, rules: ReadingRules) -> tuple[str, int, int]:
    """The digest of what decides a text; the time of its newest file, and the size of all.

    The time of the last change of a file's inode is one that no program sets.
    """
    try:
        stats = [os.stat(path) for path in files.paths]
    except (OSError, ValueError):  # reading them will say why
        return "", 0, 0
    names = ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_dev")
    about = {
        "version": [_VERSION, FORMAT, _charjax_version(), sys.version],
        "rules": rules.to_json(),
        "from_search": files.from_search,
        "files": [
            [path, os.path.realpath(path), *(getattr(stat, name) for name in names)]
            for path, stat in zip(files.paths, stats, strict=True)
        ],
    }
    newest = max(max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)
    return hashlib.sha256(to_bytes(about)).hexdigest()[:32], newest, sum(s.st_size for s in stats)


def _charjax_version() -> str:
    try:
        return importlib.metadata.version("charjax")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _read(folder: Path) -> CachedText:
    store = TextStore(str(folder))
    record = store.record(0)
    array, tokens = store.tokens(0, record), np.empty(record.tokens, record.dtype)
    with store.as_store_errors("tokens/00000"):
        for part, values in _ahead(len(tokens), lambda part: array[part].read()):
            tokens[part] = values
    alphabet = (*((BOUNDARY,) * record.boundary), *record.alphabet)
    content, index = EncodedText(tokens, alphabet, store.document_starts()), store.index
    notice = "".join(index.notices)
    return CachedText(
        content, index.characters, index.chars, index.sha256, notice, store.rules, record.notices
    )


def _write(folder: Path, text: CachedText) -> None:
    content = text.content
    has_starts = text.rules.documents.mode != "none"
    arrays = {"tokens": content.tokens} | ({"starts": content.starts} if has_starts else {})
    layouts = [_write_array(folder, f"{name}/00000", values) for name, values in arrays.items()]
    record = ShardRecord(
        alphabet="".join(content.alphabet),
        boundary=BOUNDARY in content.alphabet,
        dtype=content.tokens.dtype.name,
        tokens=len(content.tokens),
        documents=len(arrays.get("starts", ())),
        chars=text.chars,
        sha256=hashlib.sha256(content.tokens.data).hexdigest(),
        starts_sha256=hashlib.sha256(content.starts.data if has_starts else b"").hexdigest(),
        layout_sha256=hashlib.sha256(b"".join(layouts)).hexdigest(),
        input_sha256="",
        input_bytes=0,
        has_delimiter=False,
        notices=text.messages,
    )
    data = record_bytes(record)
    digest = hashlib.sha256(data).hexdigest()
    index = Index(
        format=FORMAT,
        reading=text.rules.to_json(),
        characters="".join(text.characters),
        chars=text.chars,
        notices=(text.notice,) if text.notice else (),
        field="",
        inputs=(),
        shards=(Shard(record.tokens, record.documents, record.chars, digest),),
        sha256=text.sha256,
    )
    (folder / record_name(0)).parent.mkdir()
    (folder / record_name(0)).write_bytes(data)
    (folder / INDEX).write_bytes(index_bytes(index))


def _write_array(folder: Path, name: str, values: np.ndarray) -> bytes:
    """Writes an array; returns TensorStore's description of it. Waits for no disk."""
    spec = array_spec(open_files(str(folder)), name, values.dtype.name, len(values))
    context = ts.Context({"file_io_sync": False})
    with as_os_errors():
        array = ts.open(spec, create=True, context=context).result()
        for _ in _ahead(len(values), lambda part: array[part].write(values[part])):
            pass
    return (folder / name / LAYOUT).read_bytes()


def _ahead(size: int, start: Callable[[slice], Any]) -> Iterator[tuple[slice, Any]]:
    """Each file's part of an array and its result; starts on the next parts before."""
    pending: deque[tuple[slice, Any]] = deque()
    for begin in range(0, size, FILE_TOKENS):
        part = slice(begin, min(begin + FILE_TOKENS, size))
        pending.append((part, start(part)))
        if len(pending) > _AHEAD:
            part, future = pending.popleft()
            yield part, future.result()
    for part, future in pending:
        yield part, future.result()


def _clean(root: Path, room_for: int) -> None:
    """Deletes what was not used for long, and the least recently used where there is no room."""
    now, room = time.time(), MAX_BYTES - room_for
    for used, entry in sorted(((p.stat().st_mtime, p) for p in root.iterdir()), reverse=True):
        is_unfinished = entry.name.endswith(_UNFINISHED)
        room -= sum(path.stat().st_size for path in entry.rglob("*") if path.is_file())
        is_old = now - used > (_MAX_UNFINISHED_S if is_unfinished else MAX_AGE_S)
        if is_old or (room < 0 and not is_unfinished):
            shutil.rmtree(entry, ignore_errors=True)
