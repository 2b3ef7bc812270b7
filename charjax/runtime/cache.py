"""The user's cache: files that can be downloaded or compiled again."""

from __future__ import annotations

import glob
import logging
import os
import re
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs

from charjax.errors import HostError

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
# A warning of JAX about an entry, which it names by its program, or by its key that begins so.
_ENTRY_ERROR = re.compile(
    r"Error (reading|writing) persistent compilation cache entry for '(.*?)': (.*)", re.DOTALL
)
_SAID = {
    "reading": "a damaged program is compiled again",
    "writing": "compiled programs are not cached; free disk space or give access",
}
_logger = logging.getLogger(__name__)


def cache_folder(name: str) -> Path:
    """`charjax/NAME` in the user's cache; without a home, in a temporary folder.

    The cache is `$XDG_CACHE_HOME`, or where the system has it: `~/.cache` on Linux,
    `~/Library/Caches` on macOS, `%LOCALAPPDATA%` on Windows. A relative `$XDG_CACHE_HOME` is
    ignored, as the XDG specification demands. A user has no home if neither `$HOME` nor the
    system's list of users names one.

    Raises:
      HostError: there is no home, and the temporary folder belongs to another user.
    """
    if (home := _home_cache()) is not None:
        return home / name
    if not _make_private(temporary := _temporary_cache()):
        raise HostError(
            f"{temporary}: belongs to another user; set XDG_CACHE_HOME to a folder of yours"
        )
    return temporary / name


def private_cache_folder(name: str) -> Path | None:
    """A cache folder for files that are trusted as they are, such as code and texts.

    It is created, and writable by this user alone.

    Returns:
      None if there can be no such folder: then the caller caches nothing.
    """
    for parent in (_home_cache(), _temporary_cache()):
        if parent and _make_private(parent) and _make_private(parent / name):
            return parent / name
    return None


@contextmanager
def mended_compilation_cache() -> Iterator[None]:
    """A context in which damaged entries of JAX's compilation cache are deleted, and told of once.

    JAX writes an entry in place, so a full disk or the end of the process can leave a part of one.
    It would warn of that in every later process, and never replace it.
    """
    said: set[str] = set()
    with warnings.catch_warnings():
        show_other = warnings.showwarning

        def show(message: Any, *about: Any, **options: Any) -> None:
            error = _ENTRY_ERROR.fullmatch(str(message))
            if not error:
                show_other(message, *about, **options)
                return
            folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
            if folder == str(private_cache_folder("jax")):
                for entry in Path(folder).glob(f"{glob.escape(error[2])}-*cache"):
                    with suppress(OSError):
                        entry.unlink()
            if error[1] not in said:
                said.add(error[1])
                _logger.warning("%s: %s (%s)", folder, _SAID[error[1]], error[3])

        warnings.filterwarnings("always", message=_ENTRY_ERROR.pattern)
        warnings.showwarning = show
        yield


def is_private(status: os.stat_result) -> bool:
    """Whether a file or folder is this user's, and nobody else can write to it.

    Windows keeps that in access lists; there, what is in the user's cache is the user's.
    """
    if not hasattr(os, "getuid"):
        return True
    return status.st_uid == os.getuid() and not status.st_mode & _WRITABLE_BY_OTHERS


def _home_cache() -> Path | None:
    given = os.path.expanduser(os.environ.get("XDG_CACHE_HOME", ""))
    if os.path.isabs(given):
        return Path(given) / "charjax"
    if sys.platform in ("darwin", "win32"):
        folder = platformdirs.user_cache_path("charjax", appauthor=False)
    else:  # platformdirs would take a relative XDG_CACHE_HOME
        folder = Path(os.path.expanduser(os.path.join("~", ".cache", "charjax")))
    return folder if folder.is_absolute() else None


def _temporary_cache() -> Path:
    return Path(tempfile.gettempdir()) / f"charjax-{_user_id()}"


def _user_id() -> int:
    """The user's number; 0 on Windows, where the temporary folder is of one user."""
    return os.getuid() if hasattr(os, "getuid") else 0


def _make_private(folder: Path) -> bool:
    """Creates the folder and makes it writable by this user alone; False: it is not this user's."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.lstat().st_uid != _user_id():  # it may be a link to a folder of this user
            return False
        status = folder.stat()
        if status.st_uid == _user_id() and not is_private(status):  # made with umask 002
            folder.chmod(stat.S_IMODE(status.st_mode) & ~_WRITABLE_BY_OTHERS)
        return is_private(folder.stat())
    except OSError:
        return False
