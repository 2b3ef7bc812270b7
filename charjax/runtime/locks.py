"""The system's lock on a file, flock or else that of msvcrt, which ends with the process."""

from __future__ import annotations

import importlib
import os
from typing import Any

# Windows locks bytes, which nobody else can read then: one far behind the content.
_LOCKED_BYTE = 2**30


def lock(descriptor: int) -> None:
    """Locks an open file, for this process alone, without waiting.

    Raises:
      BlockingIOError: another process has locked it.
      OSError: it cannot be locked.
    """
    if has_flock():
        fcntl = _module("fcntl")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    msvcrt = _module("msvcrt")
    os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        raise BlockingIOError(error.errno, error.strerror) from None
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)


def has_flock() -> bool:
    """Whether the system has flock, which also locks folders."""
    try:
        _module("fcntl")
    except ImportError:
        return False
    return True


def _module(name: str) -> Any:
    """Imports by name: no system has both modules, and type checkers refuse the missing one."""
    return importlib.import_module(name)
