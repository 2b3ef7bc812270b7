"""One file from the web onto the disk, whole and verified or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from charjax.data.web import Fault, chunks, open_url, short
from charjax.errors import HostError

Progress: TypeAlias = Callable[[int, int], None]  # bytes so far, bytes in all (0: not announced)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How long a server may try one's patience."""

    timeout_s: float = 10.0  # to connect, and between two pieces of the answer
    grace_s: float = 30.0  # for the whole fetch, beside the time the bytes may take
    bytes_per_s: float = 50_000.0  # the slowest transfer that is waited for
    tries: int = 3
    pause_s: float = 0.5  # after the first failed try; doubles with each


@dataclass(frozen=True, kw_only=True, slots=True)
class _Order:
    """What is fetched, what it must be, and until when it must be here."""

    url: str
    sha256: str
    min_bytes: int
    max_bytes: int
    timeout_s: float
    deadline: float  # on the monotonic clock


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str,
    min_bytes: int,
    max_bytes: int,
    progress: Progress,
    limits: Limits,
) -> None:
    """Downloads `url` to `target`, which exists afterwards only if all of it is right.

    The bytes go to a `.part` file of this process beside the target, which takes the
    target's name after the checks and is deleted on any failure.

    Args:
      url: https; plain http only on loopback, or where `sha256` pins a known publisher.
      target: the file to write; its folder is made where missing.
      sha256: hexadecimal digest the bytes must have; "" for files that are re-issued,
        which are held to their size and must not be a web page.
      min_bytes: the least size to believe.
      max_bytes: the most bytes to accept; nothing beyond is written.
      progress: called after every piece with bytes so far and in all (0: unknown).
      limits: time-outs and tries.

    Raises:
      HostError: the address is refused, the server or the network fails, the bytes
        are not what they should be, or the target cannot be written.
    """
    order = _Order(
        url=url,
        sha256=sha256,
        min_bytes=min_bytes,
        max_bytes=max_bytes,
        timeout_s=limits.timeout_s,
        deadline=time.monotonic() + limits.grace_s + max_bytes / limits.bytes_per_s,
    )
    part = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _receive_with_retries(order, part, progress, limits)
        os.replace(part, target)
    except Fault as fault:
        raise HostError(
            f"{short(url)}: {fault}; try again, or put the file at {target} by other means"
        ) from fault
    except OSError as error:
        raise HostError(
            f"{target}: cannot be written ({error.strerror}); "
            "free the disk, or set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _receive_with_retries(order: _Order, part: Path, progress: Progress, limits: Limits) -> None:
    for attempt in range(limits.tries):
        pause_s = limits.pause_s * 2**attempt
        try:
            return _receive(order, part, progress)
        except Fault as fault:
            late = time.monotonic() + pause_s >= order.deadline
            if not fault.transient or late or attempt == limits.tries - 1:
                raise
        time.sleep(pause_s)


def _receive(order: _Order, part: Path, progress: Progress) -> None:
    """One try: the verified bytes, safely on the disk under the name `part`."""
    digest, received = hashlib.sha256(), 0
    response = open_url(
        order.url,
        pinned=order.sha256 != "",
        timeout_s=order.timeout_s,
        deadline=order.deadline,
    )
    with response, open(part, "wb") as file:
        announced = response.length or 0
        _check_headers(order, response)
        for chunk in chunks(response, max_bytes=order.max_bytes, deadline=order.deadline):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            progress(received, announced)
        _check_body(order, received, digest.hexdigest())
        file.flush()
        os.fsync(file.fileno())


def _check_headers(order: _Order, response: http.client.HTTPResponse) -> None:
    if response.length is not None and response.length > order.max_bytes:
        raise Fault(f"announces {response.length} bytes, more than {order.max_bytes}")
    if not order.sha256 and response.headers.get_content_type() == "text/html":
        raise Fault("sent a web page instead of the file")


def _check_body(order: _Order, num_bytes: int, sha256: str) -> None:
    if order.sha256 and sha256 != order.sha256:
        raise Fault(f"sent a file of SHA-256 {sha256}, expected {order.sha256}")
    if num_bytes < order.min_bytes:
        raise Fault(f"sent {num_bytes} bytes, expected at least {order.min_bytes}")
