"""Raw text at addresses such as gs://bucket/texts/*.txt, found and read through fsspec."""

from __future__ import annotations

from collections import Counter
from typing import Any

from charjax.data.sources.read_errors import reading_errors
from charjax.errors import HostError, InputError
from charjax.runtime.paths import in_any_case

# What servers call that which changes with a file's content.
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "generation", "mtime"),
    *("Last-Modified", "LastModified", "updated", "created"),
)
_TIMEOUT_S = 60.0  # of a web server, to connect and between two reads


def find(address: str, option: str, left_out: Counter[str]) -> list[str]:
    """The files at an address, sorted: itself, the matches of a glob, or the *.txt of a folder.

    Suffixes match in upper and lower case. Hidden files are left out, and counted.

    Raises:
      InputError: no such scheme.
      HostError: its package is missing, or the server cannot be reached.
    """
    files, path = _filesystem(address)
    with reading_errors(address, option):
        # In an address of the web, "?" begins a query, and any page may look like a folder.
        is_web = address.startswith("http")
        if not ("*" in path or (not is_web and ("?" in path or "[" in path))):
            if not (address.endswith("/") or (not is_web and files.isdir(path))):
                return [address]
            path = f"{path.rstrip('/')}/**/*.txt"
        found = files.glob(in_any_case(path), detail=True).items()
    names = [files.unstrip_protocol(name) for name, about in found if about["type"] == "file"]
    asked = {*address.split("/")}  # a hidden folder that is named is meant
    hidden = {n for n in names if any(part[:1] == "." for part in {*n.split("/")} - asked)}
    left_out["hidden"] += len(hidden)
    return sorted({*names} - hidden)


def describe(address: str, option: str) -> dict[str, Any]:
    """Path, size in bytes (0: unknown) and version of a file, as a plan has them.

    Raises:
      InputError: there is no such file.
      HostError: as `find`.
    """
    info = _info(address, option)
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return {"path": address, "size": info.get("size") or 0, "version": version}


def has_ranges(address: str, option: str) -> bool:
    """Whether a part of a file can be read without what is before it; errors of `describe`."""
    return bool(_info(address, option).get("partial", True))


def open_address(address: str, seekable: bool) -> Any:
    """A file, open for reading from its beginning, or at any position if `seekable`.

    Raises:
      InputError, HostError: as `find`; other errors are those of `reading_errors`.
    """
    files, path = _filesystem(address)
    is_web = address.startswith("http")
    options = {"block_size": 0} if is_web and not seekable else {}  # one request for all of it
    return files.open(path, "rb", **options)


def _filesystem(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    scheme = address.partition("://")[0].lower()
    try:
        import fsspec

        options = {"client_kwargs": _web_options()} if scheme in ("http", "https") else {}
        files, path = fsspec.url_to_fs(address, **options)
    except ImportError as error:
        raise HostError(  # fsspec names the package that a scheme needs beside it
            f"{address}: reading {scheme}:// needs another package ({error}); install it, or run: "
            "pip install 'charjax[data]'"
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

    async def refuse_redirect(response: aiohttp.ClientResponse) -> None:
        if 300 <= response.status < 400:  # not followed; its body would be read as the file
            raise OSError(f"the server answered {response.status} without an address")

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT_S, sock_read=_TIMEOUT_S)
    # A file that the server compresses on the way could not be read in ranges.
    headers = {"Accept-Encoding": "identity"}
    options = {"trust_env": True, "timeout": timeout, "headers": headers}
    return options | {"raise_for_status": refuse_redirect}


def _info(address: str, option: str) -> dict[str, Any]:
    files, path = _filesystem(address)
    with reading_errors(address, option):
        info: dict[str, Any] = files.info(path)
    return info
