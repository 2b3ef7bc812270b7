"""Turns errors of reading a file, on a disk or at an address, into those of charjax."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator

from charjax.errors import CharjaxError, HostError, InputError
from charjax.runtime.paths import is_address, starting_folder

_MISSING = (404, 410)  # HTTP status codes
# What decompressors raise; packages that are imported only where they are needed, by name.
_DAMAGE = (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile, EOFError, RuntimeError)
_DAMAGE_NAMES = ("ZstdError", "ArrowInvalid")


@contextlib.contextmanager
def reading_errors(path: str, option: str) -> Iterator[None]:
    """A context whose errors are an InputError or a HostError that names the file.

    Args:
      path: the file, or its address.
      option: the flag or config field that gave it, for messages.
    """
    try:
        yield
    except (CharjaxError, MemoryError):
        raise
    except Exception as error:  # each package that reads addresses has others
        cause = error.__cause__ or error  # fsspec says "not found" of other failures, too
        is_missing = isinstance(cause, FileNotFoundError | NotADirectoryError)
        if is_missing or getattr(cause, "status", 0) in _MISSING:
            raise InputError(
                f"{option}={path!r}: no such file{starting_folder(path)}; check the path"
            ) from error
        if isinstance(error, IsADirectoryError):
            raise InputError(f"{option}={path!r}: is a folder; name a file in it") from error
        reason = getattr(cause, "strerror", None) or f"{type(cause).__name__}: {cause}"
        reason = " ".join(reason.split()).rstrip(":")[:300]
        if _is_damage(error, path):
            raise InputError(
                f"{path}: cannot be read ({reason}); the file is damaged, or its suffix is wrong"
            ) from error
        if not (isinstance(error, OSError) or is_address(path)):
            raise
        network = " and the network" if is_address(path) else ""
        raise HostError(f"{path}: cannot be read ({reason}); check its rights{network}") from error


def _is_damage(error: Exception, path: str) -> bool:
    """Whether the content of a file is to blame."""
    if isinstance(error, _DAMAGE) or type(error).__name__ in _DAMAGE_NAMES:
        return True
    is_unnumbered = type(error) is OSError and error.errno is None  # not the system's
    # At an address, both may mean that the server failed.
    return not is_address(path) and (is_unnumbered or isinstance(error, ValueError))
