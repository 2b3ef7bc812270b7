"""A run's folder: its files, and the lock that gives it one writer.

Nothing in it is ever executed or unpickled: `run.json` and the logs are text, the checkpoints
arrays and JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charjax.errors import HostError, InputError


@dataclass(frozen=True)
class Workdir:
    """The files of one run, all below `path`."""

    path: Path

    @property
    def run_json(self) -> Path:
        """What this run is: config, vocabulary, corpus, versions."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """The log of metrics: one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """The log of texts sampled during training."""
        return self.path / "samples.txt"

    @property
    def curves(self) -> Path:
        """The plot of the losses."""
        return self.path / "curves.png"

    @property
    def checkpoints(self) -> Path:
        """The folder of `charjax.checkpoint.Checkpoints`."""
        return self.path / "checkpoints"

    def create(self) -> None:
        """Makes the folder if it is missing, and checks that it can be written to.

        Raises:
          InputError: the path, or a parent of it, is a file.
          HostError: the folder cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            os.close(self._open_lock())
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"{self.path}: not a folder; choose another --workdir") from None
        except OSError as error:
            raise write_error(self.path, error) from None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """A context in which this process alone may write; the lock ends with the process, too.

        Raises:
          HostError: another process has the lock, or the folder cannot be written to.
        """
        try:
            descriptor = self._open_lock()
        except OSError as error:
            raise write_error(self.path, error) from None
        try:
            self._acquire(descriptor)
            yield
        finally:
            # This releases the lock. The file stays: another process may have it open already.
            os.close(descriptor)

    def check_lock(self) -> None:
        """Checks that this is the folder that process 0 has locked.

        Raises:
          HostError: it is another one, on a host that does not share process 0's file system.
        """
        if not self._lock.exists():
            raise HostError(
                f"{self.path}: not the folder that process 0 of this run has on its host; "
                "choose a --workdir on a file system that all hosts share"
            )

    def write_run(self, values: Mapping[str, Any]) -> None:
        """Replaces `run.json` atomically.

        Args:
          values: JSON values.

        Raises:
          HostError: the folder cannot be written to.
        """
        unfinished = self.path / ".run.json.tmp"
        text = json.dumps(values, indent=2)
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.run_json)
        except OSError as error:
            raise write_error(self.path, error) from None

    def log_sizes(self) -> dict[str, int]:
        """{file name: bytes} of both logs; 0 for a missing one."""
        return {
            log.name: log.stat().st_size if log.exists() else 0
            for log in (self.metrics, self.samples)
        }

    def truncate_logs(self, sizes: Mapping[str, int]) -> None:
        """Truncates both logs to the sizes that `log_sizes` returned; a shorter one stays.

        Raises:
          HostError: a log cannot be written to.
        """
        try:
            for log in (self.metrics, self.samples):
                if log.exists() and log.stat().st_size > sizes[log.name]:
                    os.truncate(log, sizes[log.name])
        except OSError as error:
            raise write_error(self.path, error) from None

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    def _open_lock(self) -> int:
        return os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)

    def _acquire(self, descriptor: int) -> None:
        """Locks the open file and writes into it who has the lock, for a second process's error."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            raise HostError(
                f"{self.path}: in use by {holder or 'another process'}; "
                "wait until it has ended, or choose another --workdir"
            ) from None
        except OSError as error:
            raise write_error(self.path, error) from None


def append(log: Path, text: str) -> None:
    """Appends text to a log, newlines as they are.

    Raises:
      HostError: the log cannot be written to.
    """
    try:
        with log.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise write_error(log, error) from None


def write_error(path: Path, error: OSError) -> HostError:
    """The HostError for a file or a folder that cannot be made or written to."""
    return HostError(
        f"{error.filename or path}: {error.strerror or error}; "
        "make room or access there, or choose another --workdir"
    )
