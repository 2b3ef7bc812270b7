"""Downloads a file over HTTP(S): bounded in time and size, verified, written atomically."""

from __future__ import annotations

import contextlib
import hashlib
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
      min_bytes: the smallest size accepted.
      max_bytes: the largest size accepted; more is never written to disk.
    """

    url: str = ""
    sha256: str = ""
    min_bytes: int
    max_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Time-outs and retries of a download."""

    timeout_s: float = 10.0  # to connect, and between two reads
    grace_s: float = 30.0  # added to the deadline, for all but the transfer of the bytes
    bytes_per_s: float = 50_000.0  # the slowest transfer that is accepted
    tries: int = 3  # the first one included
    pause_s: float = 0.5  # before the first retry; doubles with each retry


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
    transfer = _Transfer(file, part, deadline, limits, progress)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        transfer.run_with_retries()
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


@dataclass(frozen=True, slots=True)
class _Transfer:
    """One download to a temporary file; `deadline` is on the monotonic clock."""

    file: RemoteFile
    part: Path
    deadline: float
    limits: Limits
    progress: ProgressFn

    def run_with_retries(self) -> None:
        for attempt in range(self.limits.tries):
            pause_s = self.limits.pause_s * 2**attempt
            try:
                return self.run()
            except TransferError as error:
                is_late = time.monotonic() + pause_s >= self.deadline
                if not error.transient or is_late or attempt == self.limits.tries - 1:
                    raise
            time.sleep(pause_s)

    def run(self) -> None:
        """One attempt; when it returns, the verified bytes are on disk."""
        digest, received = hashlib.sha256(), 0
        response = self._open()
        with response, open(self.part, "wb") as part:
            expected = response.length or 0
            self._check_headers(response)
            for chunk in self._read(response):
                part.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                self.progress(received, expected)
            self._check_body(received, digest.hexdigest())
            part.flush()
            os.fsync(part.fileno())

    def _open(self) -> HTTPResponse:
        """Sends the request; the body of the response is not read yet."""
        pinned = self.file.sha256 != ""
        _check_address(self.file.url, pinned=pinned)
        opener = build_opener(_RedirectHandler(pinned=pinned))
        request = Request(self.file.url, headers={"User-Agent": "charjax"})
        with _network_errors():
            return _before(
                self.deadline, lambda: opener.open(request, timeout=self.limits.timeout_s)
            )

    def _read(self, response: HTTPResponse) -> Iterator[bytes]:
        """The body, in chunks as they arrive; checks its length and the deadline."""
        announced, received = response.length, 0
        while announced is None or received < announced:
            if time.monotonic() > self.deadline:
                raise TransferError("the transfer is too slow", transient=True)
            with _network_errors():
                chunk = response.read1(_CHUNK_BYTES)  # read() would wait until a chunk is full
            if not chunk:
                break
            received += len(chunk)
            if received > self.file.max_bytes:
                raise TransferError(f"sends more than {self.file.max_bytes} bytes")
            yield chunk
        if announced is not None and received < announced:
            raise TransferError(f"broke off after {received} of {announced} bytes", transient=True)

    def _check_headers(self, response: HTTPResponse) -> None:
        if response.length is not None and response.length > self.file.max_bytes:
            raise TransferError(
                f"announces {response.length} bytes, more than {self.file.max_bytes}"
            )
        if not self.file.sha256 and response.headers.get_content_type() == "text/html":
            raise TransferError("sent a web page instead of the file")

    def _check_body(self, num_bytes: int, sha256: str) -> None:
        if self.file.sha256 and sha256 != self.file.sha256:
            raise TransferError(f"sent a file of SHA-256 {sha256}, expected {self.file.sha256}")
        if num_bytes < self.file.min_bytes:
            raise TransferError(f"sent {num_bytes} bytes, expected at least {self.file.min_bytes}")


def _without_query(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


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
