"""Runs the C compiler: no file or process of it remains, however this process ends."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from charjax.runtime.cache import is_private

_PREFIX = "charjax-build-"
_STALE_S = 3600

# The standard input is a pipe from this process. When it ends, or gives up, the pipe's end tells
# the shell to delete the folder and to kill the process group: compilers run others in turn.
_SHELL = """
exec 3<&0 </dev/null
"$@" 3<&- &
compiler=$!
{ read -r _ <&3; rm -rf "$0"; kill -KILL 0; } >/dev/null 2>&1 &
watcher=$!
wait $compiler
status=$?
kill -KILL $watcher
wait $watcher 2>/dev/null
exit $status
"""


def compiler_command() -> list[str]:
    """The words of the environment variable CC, such as "ccache gcc -m64"; ["cc"] if it has none.

    Raises:
      ValueError: a quote in CC is not closed.
    """
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


@contextlib.contextmanager
def build_folder(cache: Path | None) -> Iterator[Path]:
    """A temporary folder, in the cache if that can be written to, else in the system's."""
    try:
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=cache)
    except OSError:
        folder = tempfile.mkdtemp(prefix=_PREFIX)
    _delete_stale(Path(folder).parent)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_compiler(command: Sequence[str], folder: Path, timeout_s: float) -> str:
    """Runs a command that writes into a `build_folder`; returns why it failed, or "".

    Raises:
      TimeoutError: it did not end within `timeout_s` seconds, and was ended.
      OSError: it could not be started, as on a full disk.
    """
    folder.mkdir(exist_ok=True)
    with open(folder / "errors", "w+b") as errors:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _SHELL, str(folder), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        with process:
            try:
                status = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"no result after {timeout_s} s") from None
        errors.seek(0)
        message = errors.read().decode(errors="replace").strip()
    return (message or f"exit status {status}") if status else ""


def _delete_stale(parent: Path) -> None:
    """Deletes the build folders of processes that were killed together with their shell."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.stat()
            if is_private(status) and time.time() - status.st_mtime > _STALE_S:
                shutil.rmtree(folder, ignore_errors=True)
