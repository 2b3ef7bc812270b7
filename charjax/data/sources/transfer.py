"""Receives a file over HTTP(S), bounded in time and size."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, InvalidURL
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

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


class TransferError(Exception):
    """A download failed.

    Attributes:
      transient: whether a retry may succeed.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


def receive(file: RemoteFile, deadline: float, timeout_s: float) -> Iterator[tuple[bytes, int]]:
    """The body in chunks as they arrive, each with the announced length of all (0: unknown).

    Args:
      file: the address, and what it must be; the digest is left to the caller.
      deadline: on the monotonic clock.
      timeout_s: to connect, and between two reads.

    Raises:
      TransferError: the address is refused, or the server or the network fails.
    """
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


def without_query(url: str) -> str:
    """An address for a message: what follows "?" may be a secret."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


def _check_address(url: str, *, pinned: bool) -> None:
    """Refuses plain http, except on loopback, and from `_PLAIN_HTTP_HOSTS` if `pinned`.

    `pinned` means that the digest of the file is known.
    """
    parts = urlsplit(url)
    plain = parts.hostname in _LOOPBACK or (pinned and parts.hostname in _PLAIN_HTTP_HOSTS)
    if parts.scheme != "https" and not (parts.scheme == "http" and plain):
        raise TransferError(f"leads to {without_query(url)}, which is not https")


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
                raise TransferError(f"redirects to {without_query(newurl)}, which is not https")
        except TransferError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)
