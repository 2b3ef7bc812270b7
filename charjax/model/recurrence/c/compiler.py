"""Runs the C compiler: no file or process of it remains, however this process ends."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

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


def run_compiler(command: Sequence[str], folder: Path, timeout_s: float) -> str:
    """Runs a command that writes into a temporary folder; returns why it failed, or "".

    Raises:
      TimeoutError: it did not end within `timeout_s` seconds, and was ended.
      OSError: it could not be started, as on a full disk.
    """
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
