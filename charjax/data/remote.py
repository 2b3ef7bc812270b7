"""Raw text at addresses such as gs://bucket/texts/*.txt, found and read through fsspec."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from charjax.errors import CharjaxError, HostError, InputError

# The package that a scheme needs beside fsspec.
_PACKAGES = {
    "http": "charjax[data]",
    "https": "charjax[data]",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "s3": "s3fs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
}
# What servers call that which changes with a file's content.
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "updated", "created")
_MISSING = (404, 410)  # HTTP status codes
_BUFFER = 1 << 20  # bytes
_TIMEOUT_S = 60.0  # of a web server, to connect and between two reads


def find(address: str) -> list[str]:
    """The files at an address, sorted: itself, the matches of a glob, or the *.txt of a folder.

    Raises:
      InputError: no such scheme.
      HostError: its package is missing, or the server cannot be reached.
    """
    files, path = _filesystem(address)
    with _as_charjax_errors(address):
        # In an address of the web, "?" begins a query, and any page may look like a folder.
        is_web = address.startswith("http")
        if "*" in path or (not is_web and ("?" in path or "[" in path)):
            found = files.glob(path)
        elif address.endswith("/") or (not is_web and files.isdir(path)):
            found = files.glob(f"{path.rstrip('/')}/**/*.txt")
        else:
            return [address]
        return sorted(files.unstrip_protocol(name) for name in found)


def describe(address: str) -> dict[str, Any]:
    """Path, size in bytes (0: unknown) and version of a file, as a plan has them.

    Raises:
      InputError: there is no such file.
      HostError: as `find`.
    """
    info = _info(address)
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return {"path": address, "size": info.get("size") or 0, "version": version}


def has_ranges(address: str) -> bool:
    """Whether a part of a file can be read without what is before it; errors of `describe`."""
    return bool(_info(address).get("partial", True))


def open_address(address: str, *, seekable: bool) -> io.BufferedReader:
    """A file, opened for reading from its beginning, or at any position if `seekable`.

    Raises:
      InputError, HostError: as `describe`, here and when it is read.
    """
    files, path = _filesystem(address)
    is_web = address.startswith("http")
    options = {"block_size": 0} if is_web and not seekable else {}  # one request for all of it
    with _as_charjax_errors(address):
        return io.BufferedReader(_Reader(address, files.open(path, "rb", **options)), _BUFFER)


class _Reader(io.RawIOBase):
    """A remote file, whose errors are those of charjax."""

    def __init__(self, address: str, file: Any) -> None:
        self._address, self._file = address, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _as_charjax_errors(self._address):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, position: int, whence: int = 0) -> int:
        with _as_charjax_errors(self._address):
            self._file.seek(position, whence)
        return self.tell()

    def tell(self) -> int:
        position: int = self._file.tell()
        return position

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _filesystem(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    scheme = address.partition("://")[0].lower()
    try:
        import fsspec

        options = {"client_kwargs": _web_options()} if scheme in ("http", "https") else {}
        files, path = fsspec.url_to_fs(address, **options)
    except ImportError as error:
        package = _PACKAGES.get(scheme, "the package that it names")
        raise HostError(
            f"{address}: reading {scheme}:// needs another package ({error}); "
            f"run: pip install '{package}'"
        ) from None
    except ValueError as error:
        raise InputError(
            f"{address}: no such scheme ({error}); give a path, or an address such as "
            "gs://bucket/file, s3://bucket/file or http://host/file"
        ) from None
    return files, path


def _web_options() -> dict[str, Any]:
    """The options of aiohttp: a limit for each read, where aiohttp has one for the whole file."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT_S, sock_read=_TIMEOUT_S)
    # A file that the server compresses on the way could not be read in ranges.
    headers = {"Accept-Encoding": "identity"}
    return {"trust_env": True, "timeout": timeout, "headers": headers}


def _info(address: str) -> dict[str, Any]:
    files, path = _filesystem(address)
    with _as_charjax_errors(address):
        info: dict[str, Any] = files.info(path)
    return info


@contextlib.contextmanager
def _as_charjax_errors(address: str) -> Iterator[None]:
    """Turns any error into that of a missing file or of the host; each package has others."""
    try:
        yield
    except CharjaxError:
        raise
    except Exception as error:
        cause = error.__cause__ or error  # fsspec says "not found" of other failures, too
        if isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) in _MISSING:
            raise InputError(f"{address}: no such file; check the address") from error
        reason = " ".join(f"{type(cause).__name__}: {cause}".split()).rstrip(":")[:300]
        raise HostError(
            f"{address}: cannot be read ({reason}); check rights and the network, then start the "
            "same command again"
        ) from error
