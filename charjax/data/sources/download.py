"""Downloads a file over HTTP(S): bounded in time and size, verified, written atomically."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from charjax.errors import HostError
from charjax.runtime.display import ProgressFn, no_progress

_CHUNK_BYTES = 1 << 16
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Publishers without TLS; only a file with a known digest is accepted from them.
_PLAIN_HTTP_HOSTS = ("mattmahoney.net",)


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """A file to download, and what it must be.

    Attributes:
      url: https; plain http only on loopback, or from a publisher without TLS if `sha256` is
        known. "" if the file cannot be downloaded.
      sha256: hexadecimal digest; "" if none is known, since the publisher changes the file now
        and then. Then only its size is checked, and that it is not a web page.
      min_bytes: the smallest size accepted; needed only without a digest.
      max_bytes: the largest size accepted; more is never written to disk.
    """

    url: str = ""
    sha256: str = ""
    min_bytes: int = 0
    max_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Time-outs and retries of a download."""

    timeout_s: float = 10.0  # to connect, and between two reads
    grace_s: float = 30.0  # added to the deadline, for all but the transfer of the bytes
    bytes_per_s: float = 50_000.0  # the slowest transfer that is accepted
    pauses_s: tuple[float, ...] = (0.5, 1.0)  # before each retry


DEFAULT_LIMITS = Limits()


class TransferError(Exception):
    """A download failed.

    Attributes:
      transient: whether a retry may succeed.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


def fetch(
    file: RemoteFile,
    target: Path,
    *,
    progress: ProgressFn = no_progress,
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    """Downloads a file to `target`, which is replaced only if all checks pass.

    The bytes go to a temporary `.part` file beside the target. It is renamed to the target
    after the checks, and deleted on any failure.

    Args:
      file: the address, the digest and the size.
      target: the path to write; its folder is created if missing.
      progress: called after every read with the bytes received and expected (0: unknown).
      limits: time-outs and retries.

    Raises:
      HostError: the address is refused, the server or the network fails, the bytes
        are not the expected ones, or the target cannot be written.
    """
    deadline = time.monotonic() + limits.grace_s + file.max_bytes / limits.bytes_per_s
    part = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for pause_s in (*limits.pauses_s, math.inf):
            try:
                _download(file, part, progress, deadline, limits.timeout_s)
                break
            except TransferError as error:
                if not error.transient or time.monotonic() + pause_s >= deadline:
                    raise
            time.sleep(pause_s)
        os.replace(part, target)
    except TransferError as error:
        raise HostError(
            f"{_without_query(file.url)}: {error}; try again, or put the file at {target} "
            "by other means"
        ) from error
    except OSError as error:
        raise HostError(
            f"{target}: cannot be written ({error.strerror}); "
            "free the disk, or set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _download(
    file: RemoteFile, part: Path, progress: ProgressFn, deadline: float, timeout_s: float
) -> None:
    """One attempt; when it returns, the verified bytes are on disk."""
    digest, size = hashlib.sha256(), 0
    with open(part, "wb") as opened:
        for chunk, announced in _receive(file, deadline, timeout_s):
            opened.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            progress(size, announced)
        sha256 = digest.hexdigest()
        if file.sha256 and sha256 != file.sha256:
            raise TransferError(f"sent a file of SHA-256 {sha256}, expected {file.sha256}")
        if size < file.min_bytes:
            raise TransferError(f"sent {size} bytes, expected at least {file.min_bytes}")
        opened.flush()
        os.fsync(opened.fileno())


def _receive(file: RemoteFile, deadline: float, timeout_s: float) -> Iterator[tuple[bytes, int]]:
    """The body in chunks as they arrive, each with the announced length of all (0: unknown)."""
    received = 0
    with _network_errors(), _open(file, deadline, timeout_s) as response:
        announced = response.length or 0
        if announced > file.max_bytes:
            raise TransferError(f"announces {announced} bytes, more than {file.max_bytes}")
        if not file.sha256 and response.headers.get_content_type() == "text/html":
            raise TransferError("sent a web page instead of the file")
        while chunk := response.read1(_CHUNK_BYTES):  # read() would wait until a chunk is full
            received += len(chunk)
            if received > file.max_bytes:
                raise TransferError(f"sends more than {file.max_bytes} bytes")
            if time.monotonic() > deadline:
                raise TransferError("the transfer is too slow", transient=True)
            yield chunk, announced
    if received < announced:
        raise TransferError(f"broke off after {received} of {announced} bytes", transient=True)


def _open(file: RemoteFile, deadline: float, timeout_s: float) -> HTTPResponse:
    """Sends the request; the body of the response is not read yet."""
    pinned = file.sha256 != ""
    _check_address(file.url, pinned=pinned)
    opener = build_opener(_RedirectHandler(pinned=pinned))
    request = Request(file.url, headers={"User-Agent": "charjax"})
    return _before(deadline, lambda: opener.open(request, timeout=timeout_s))


def _without_query(url: str) -> str:
    return urlsplit(url)._replace(query="", fragment="").geturl()


def _check_address(url: str, *, pinned: bool) -> None:
    """Refuses plain http, except on loopback, and from `_PLAIN_HTTP_HOSTS` if `pinned`.

    `pinned` means that the digest of the file is known.
    """
    parts = urlsplit(url)
    plain = parts.hostname in _LOOPBACK or (pinned and parts.hostname in _PLAIN_HTTP_HOSTS)
    if parts.scheme != "https" and not (parts.scheme == "http" and plain):
        raise TransferError(f"leads to {_without_query(url)}, which is not https")


def _before(deadline: float, respond: Callable[[], HTTPResponse]) -> HTTPResponse:
    """The response, or TimeoutError at the deadline.

    A socket time-out bounds neither the name look-up nor headers that arrive byte by byte,
    so a thread waits for the response. A thread that hangs is abandoned: it is a daemon.
    """
    future: Future[HTTPResponse] = Future()

    def work() -> None:
        try:
            future.set_result(respond())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return future.result(timeout=max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        future.add_done_callback(_close_late_response)
        raise


def _close_late_response(future: Future[HTTPResponse]) -> None:
    if future.exception() is None:
        future.result().close()


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    """Turns errors of urllib and http.client into a `TransferError`."""
    try:
        yield
    except HTTPError as error:
        with error:  # it holds the connection
            if 300 <= error.code < 400:
                raise TransferError("redirects too often") from None
            transient = error.code >= 500 or error.code in (408, 429)
            raise TransferError(f"the server answered {error.code}", transient=transient) from None
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            raise TransferError("no answer in time", transient=True) from error
        # Malformed addresses and certificates that do not verify are permanent.
        transient = not isinstance(reason, ValueError | InvalidURL)
        words = " ".join(str(reason).split()) or type(reason).__name__
        raise TransferError(f"cannot be reached ({words})", transient=transient) from error


class _RedirectHandler(HTTPRedirectHandler):
    """Follows at most five redirects, none twice, and none from https to http."""

    max_redirections = 5
    max_repeats = 1

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        """The next request, if its address is allowed."""
        try:
            _check_address(newurl, pinned=self._pinned)
            if req.type == "https" and urlsplit(newurl).scheme != "https":
                raise TransferError(f"redirects to {_without_query(newurl)}, which is not https")
        except TransferError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)
