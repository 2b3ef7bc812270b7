"""Downloads a file: tried again where it may help, verified, written atomically."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from charjax.data.sources.transfer import RemoteFile, TransferError, receive, without_query
from charjax.errors import HostError
from charjax.runtime.display import ProgressFn, no_progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Time-outs and retries of a download."""

    timeout_s: float = 10.0  # to connect, and between two reads
    grace_s: float = 30.0  # added to the deadline, for all but the transfer of the bytes
    bytes_per_s: float = 50_000.0  # the slowest transfer that is accepted
    pauses_s: tuple[float, ...] = (0.5, 1.0)  # before each retry


DEFAULT_LIMITS = Limits()


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
            f"{without_query(file.url)}: {error}; try again, or put the file at {target} "
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
        for chunk, announced in receive(file, deadline, timeout_s):
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
