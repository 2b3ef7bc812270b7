"""A run's folder: where its files lie, who may write there, and what it says about itself.

Nothing in a run's folder is ever executed or unpickled: `run.json` and the
logs are text, the checkpoints are arrays and JSON.
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
        """One JSON object a record."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """The texts that the model wrote on the way."""
        return self.path / "samples.txt"

    @property
    def curves(self) -> Path:
        """The losses as a picture."""
        return self.path / "curves.png"

    @property
    def checkpoints(self) -> Path:
        """The folder of `charjax.checkpoint.Checkpoints`."""
        return self.path / "checkpoints"

    def create(self) -> None:
        """Makes the folder, and finds out before any costly work whether it can be written to.

        Raises:
          InputError: the path is or leads through a file.
          HostError: the folder cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            os.close(self._open_lock())
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"{self.path}: not a folder; choose another --workdir") from None
        except OSError as error:
            raise refused(self.path, error) from None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process; the system frees it however the process ends.

        Raises:
          HostError: another process holds it, or the folder cannot be written to.
        """
        try:
            descriptor = self._open_lock()
        except OSError as error:
            raise refused(self.path, error) from None
        try:
            self._take(descriptor)
            yield
        finally:
            os.close(descriptor)  # and with it the lock; the file stays, as others may wait on it

    def check_lock(self) -> None:
        """Makes sure that the folder is the one which this run's first process has locked.

        Raises:
          HostError: it is not, as on a host with a file system of its own.
        """
        if not self._lock.exists():
            raise HostError(
                f"{self.path}: not the folder that process 0 of this run has on its host; "
                "choose a --workdir on a file system that all hosts share"
            )

    def write_run(self, values: Mapping[str, Any]) -> None:
        """Replaces `run.json` by these JSON values; a reader sees the old or the new, whole.

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
            raise refused(self.path, error) from None

    def read_run(self) -> dict[str, Any]:
        """The values that `write_run` wrote.

        Raises:
          InputError: there is no `run.json`, or it is not a JSON object.
        """
        try:
            values = json.loads(self.run_json.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"{self.run_json}: {error.strerror}; is --workdir the folder of a run?"
            ) from None
        except ValueError as error:
            raise InputError(
                f"{self.run_json}: not JSON ({error}); delete it and resume the run to rewrite it"
            ) from None
        if not isinstance(values, dict):
            raise InputError(f"{self.run_json}: holds a {type(values).__name__}, not an object")
        return values

    def log_sizes(self) -> dict[str, int]:
        """The bytes of each log by file name; 0 where there is none yet."""
        return {
            log.name: log.stat().st_size if log.exists() else 0
            for log in (self.metrics, self.samples)
        }

    def truncate_logs(self, sizes: Mapping[str, int]) -> None:
        """Cuts both logs back to what `log_sizes` once said; a shorter log stays as it is.

        Raises:
          HostError: a log cannot be written to.
        """
        try:
            for log in (self.metrics, self.samples):
                if log.exists() and log.stat().st_size > sizes[log.name]:
                    os.truncate(log, sizes[log.name])
        except OSError as error:
            raise refused(self.path, error) from None

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    def _open_lock(self) -> int:
        return os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)

    def _take(self, descriptor: int) -> None:
        """Locks the open lock file and signs it, for the message that a second process gets."""
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
            raise refused(self.path, error) from None


def append(log: Path, text: str) -> None:
    """Adds text to the end of a log; line ends stay as they are.

    Raises:
      HostError: the disk refused.
    """
    try:
        with log.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise refused(log, error) from None


def refused(path: Path, error: OSError) -> HostError:
    """The error for a file, or a folder, that the system refuses to make or to write."""
    return HostError(
        f"{error.filename or path}: {error.strerror or error}; "
        "make room or access there, or choose another --workdir"
    )
