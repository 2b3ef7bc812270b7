"""Files in folders that others can write to: only regular files; `read_linked` alone follows links.

A run's folder may come from someone else. A link in it could have a run overwrite a file of its
user, and a pipe in it could stop a command for ever.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from charjax.errors import HostError, InputError

# What some systems lack. Windows would translate line ends without O_BINARY.
_OPEN_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
_PATIENCE_S = 3.0  # with a reader that holds a file open
# Errors of `os.open` with O_NOFOLLOW for a link, and for a folder, pipe or socket.
_NOT_REGULAR = (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO)


def open_regular(path: Path, flags: int) -> int:
    """As `os.open`, but refuses all but regular files; does not follow a link to one.

    Raises:
      InputError: the path is a link, a folder, a pipe, a socket or a device.
      OSError: the file cannot be opened.
    """
    if not hasattr(os, "O_NOFOLLOW") and path.is_symlink():
        raise not_regular(path)
    try:
        descriptor = os.open(path, flags | _OPEN_FLAGS, 0o644)
    except OSError as error:
        if error.errno in _NOT_REGULAR:
            raise not_regular(path) from None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise not_regular(path)


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file, at most `limit` bytes of it.

    Raises:
      InputError, OSError: see `open_regular`.
    """
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read(limit)


def read_linked(path: Path, limit: int = -1) -> bytes:
    """The content of a regular file, to which links may lead, as in the cache of a model hub.

    Raises:
      InputError: it is a folder, a pipe or the like.
      OSError: it cannot be read.
    """
    try:
        return read_regular(Path(os.path.realpath(path)), limit)
    except InputError:
        what = "a folder" if path.is_dir() else "not a regular file"
        raise InputError(f"{path}: is {what}; name a file") from None


def write_atomically(path: Path, content: bytes, *, unfinished: Path) -> None:
    """Writes a file in full, or not at all; what is unfinished is deleted if it cannot be.

    Args:
      path: the file, which is replaced if it exists.
      content: what to write.
      unfinished: a path in the same file system, where the file is before it is complete.

    Raises:
      InputError, OSError: see `open_regular`.
    """
    descriptor = open_regular(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        replace_file(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def replace_content(path: Path, content: bytes) -> None:
    """Writes a file atomically, or replaces it.

    Raises:
      InputError: it is a link, or another kind of file.
      HostError: the folder cannot be written to.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise not_regular(path)
    unfinished = path.with_name(f".{path.name.removeprefix('.')}.tmp")
    try:
        write_atomically(path, content, unfinished=unfinished)
    except OSError as error:
        error.filename = path  # not the unfinished one
        raise write_error(path, error) from None


def replace_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON values atomically, as `replace_content`; raises as it."""
    replace_content(path, (json.dumps(values, indent=2) + "\n").encode())


def append_content(log: Path, content: bytes) -> None:
    """Appends to a log.

    Raises:
      InputError: it is a link, or another kind of file.
      HostError: the log cannot be written to.
    """
    try:
        descriptor = open_regular(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with os.fdopen(descriptor, "ab") as file:
            file.write(content)
    except OSError as error:
        raise write_error(log, error) from None


def write_error(path: Path, error: OSError) -> HostError:
    """The HostError for a file or a folder that cannot be made or written to."""
    return HostError(
        f"{error.filename or path}: {error.strerror or error}; "
        "free disk space or give access, or choose another folder"
    )


@contextlib.contextmanager
def as_os_errors() -> Iterator[None]:
    """Turns a ValueError of TensorStore that has an OS error code into an OSError."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def replace_file(source: Path, target: Path) -> None:
    """Renames a file or a folder atomically; a file that has the name already is replaced.

    On Windows this fails while a reader has one of them open: then it tries again for a while.

    Raises:
      OSError: it cannot be renamed.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            source.replace(target)
            return
        except PermissionError:
            if not _readers_block() or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _readers_block() -> bool:
    """Whether the system refuses to rename what another process has open."""
    return os.name == "nt"


def not_regular(path: Path) -> InputError:
    """The error for a link, or a file or folder of another kind, in a run's folder."""
    kinds = {"a link": path.is_symlink(), "a folder": path.is_dir(), "a file": path.is_file()}
    what = next((kind for kind, is_one in kinds.items() if is_one), "not a regular file")
    return InputError(f"{path}: {what}, which no run writes; remove it, or choose another folder")
