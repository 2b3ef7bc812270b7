"""The lock of a run's folder, on a file in it and on the folder; it ends with the process."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from charjax.errors import HostError, InputError
from charjax.runtime.files import open_regular, write_error
from charjax.runtime.locks import has_flock, lock

# Errors where folders cannot be locked, as on NFS; only the file is locked then.
_NO_FOLDER_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOTSUP)


def lock_file(folder: Path) -> Path:
    """The file that a writer of the folder locks; it has the name of the last one."""
    return folder / ".lock"


def open_lock_file(folder: Path) -> int:
    """Opens the lock file, which is made if it is missing; the errors are those of `open_regular`.

    Returns:
      The descriptor.
    """
    return open_regular(lock_file(folder), os.O_RDWR | os.O_CREAT)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """A context in which this process alone may write to a folder; does not wait for others.

    The lock file stays afterwards, as others may have it open.

    Raises:
      HostError: another process has locked the folder, or it cannot be written to.
      InputError: the lock file has something else in it, or is no regular file.
    """
    with contextlib.ExitStack() as locks:
        try:
            _lock_file_and_folder(folder, locks)
        except OSError as error:
            raise write_error(folder, error) from None
        yield


def _lock_file_and_folder(folder: Path, locks: contextlib.ExitStack) -> None:
    """Locks the file, and the folder: without its file, others would make and lock a new one.

    Windows cannot lock folders, but lets nobody remove an open file.
    """
    file = open_lock_file(folder)
    locks.callback(os.close, file)
    holder = _read_holder(folder, file)
    try:
        if has_flock():
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            locks.callback(os.close, descriptor)
            try:
                lock(descriptor)
            except OSError as error:
                if error.errno not in _NO_FOLDER_LOCKS:
                    raise
        lock(file)
    except BlockingIOError:
        raise HostError(
            f"{folder}: in use by {holder or 'another process'}; "
            "wait until it has ended, or choose another folder"
        ) from None
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _read_holder(folder: Path, file: int) -> str:
    """The name of the last process that locked the folder; "" if there was none."""
    holder = os.read(file, 200).decode(errors="replace").strip()
    if holder and not re.fullmatch(r"process \d+ on .*", holder):
        raise InputError(
            f"{lock_file(folder)}: not the lock of a run; remove it, or choose another folder"
        )
    return holder
