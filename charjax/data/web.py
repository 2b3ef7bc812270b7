"""One answer from a web server that may be slow, broken or hostile, within stated bounds."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

_CHUNK_BYTES = 1 << 16
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Publishers that offer no TLS; what they send is trusted by its digest alone.
_PLAIN_HOSTS = ("mattmahoney.net",)


class Fault(Exception):  # noqa: N818 - the caller tries again or raises its own error
    """What went wrong, and whether another try may fare better."""

    def __init__(self, what: str, *, transient: bool = False) -> None:
        super().__init__(what)
        self.transient = transient


def short(url: str) -> str:
    """The address without its query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def open_url(
    url: str, *, pinned: bool, timeout_s: float, deadline: float
) -> http.client.HTTPResponse:
    """The answer to a GET, after at most five redirects, of which the body is unread.

    Args:
      url: https; plain http only on loopback, or where `pinned` at a known publisher.
      pinned: whether the caller knows the digest of the body.
      timeout_s: to connect, and between two pieces of the answer.
      deadline: on the monotonic clock; the headers are here by then.

    Raises:
      Fault: the address is refused, or there is no answer, or not the one hoped for.
    """
    _check_address(url, pinned=pinned)
    opener = build_opener(_Redirects(pinned=pinned))
    request = Request(url, headers={"User-Agent": "charjax"})

    def answer() -> http.client.HTTPResponse:
        response: http.client.HTTPResponse = opener.open(request, timeout=timeout_s)
        return response

    with _faults():
        return _within(deadline - time.monotonic(), answer)


def chunks(
    response: http.client.HTTPResponse, *, max_bytes: int, deadline: float
) -> Iterator[bytes]:
    """The body in pieces as they arrive: all that was announced, and in time.

    Raises:
      Fault: the body is larger than `max_bytes`, breaks off, stalls, or is not
        complete at the deadline on the monotonic clock.
    """
    announced, received = response.length, 0
    while announced is None or received < announced:
        if time.monotonic() > deadline:
            raise Fault("the transfer is too slow", transient=True)
        with _faults():
            chunk = response.read1(_CHUNK_BYTES)  # read() would wait until a chunk is full
        if not chunk:
            break
        received += len(chunk)
        if received > max_bytes:
            raise Fault(f"sends more than {max_bytes} bytes")
        yield chunk
    if announced is not None and received < announced:
        raise Fault(f"broke off after {received} of {announced} bytes", transient=True)


def _check_address(url: str, *, pinned: bool) -> None:
    parts = urlsplit(url)
    plain = parts.hostname in _LOOPBACK or (pinned and parts.hostname in _PLAIN_HOSTS)
    if parts.scheme != "https" and not (parts.scheme == "http" and plain):
        raise Fault(f"leads to {short(url)}, which is not https")


def _within(
    seconds: float, call: Callable[[], http.client.HTTPResponse]
) -> http.client.HTTPResponse:
    """The call's answer, or TimeoutError.

    No socket time-out ends a name look-up, or headers that come byte by byte; hence a
    thread, which is left behind where it hangs.
    """
    future: Future[http.client.HTTPResponse] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return future.result(timeout=max(0.0, seconds))
    except TimeoutError:
        future.add_done_callback(_close_late_answer)
        raise


def _close_late_answer(future: Future[http.client.HTTPResponse]) -> None:
    if future.exception() is None:
        future.result().close()


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Everything that urllib and http.client raise, as a fault."""
    try:
        yield
    except HTTPError as error:
        with error:  # it holds the connection
            if 300 <= error.code < 400:
                raise Fault("redirects without end") from None
            transient = error.code >= 500 or error.code in (408, 429)
            raise Fault(f"the server answered {error.code}", transient=transient) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            raise Fault("no answer in time", transient=True) from error
        # A malformed address, or a certificate that does not verify: both stay so.
        transient = not isinstance(reason, ValueError | http.client.InvalidURL)
        words = " ".join(str(reason).split()) or type(reason).__name__
        raise Fault(f"cannot be reached ({words})", transient=transient) from error


class _Redirects(HTTPRedirectHandler):
    """At most five redirects, none twice, and none from https down to http."""

    max_redirections = 5
    max_repeats = 1

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        """The next request of the chain, where its address may be followed."""
        try:
            _check_address(newurl, pinned=self._pinned)
            if req.type == "https" and urlsplit(newurl).scheme != "https":
                raise Fault(f"leads down to {short(newurl)}, which is not https")
        except Fault:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)
