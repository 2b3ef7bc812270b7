"""Turns an abort in native code into one line and an exit code, without a core dump.

JAX's coordination service aborts a process from C++ when another process of the run has died: it
writes a long report to stderr and raises SIGABRT. A handler of Python's `signal` module would never
run, since the interpreter does not get control again. So a C handler is set through ctypes, and the
output of native libraries is redirected to a file.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from charjax.runtime.files import open_regular


class AbortHandler:
    """Handles SIGABRT from construction to the end of the process.

    Attributes:
      message: what an abort prints on stderr, one line.
      exit_code: what it ends the process with.
    """

    def __init__(self, message: str, exit_code: int, *, native_log: Path) -> None:
        """Sets the handler, and redirects what native code writes to stdout and stderr."""
        self.message, self.exit_code = message, exit_code
        self._stderr = _redirect_native_output(native_log)
        self._c_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._exit)  # must not be freed
        ctypes.CDLL(None if os.name == "posix" else "ucrtbase").signal(
            signal.SIGABRT, self._c_handler
        )

    def _exit(self, number: int) -> None:
        os.write(self._stderr, f"charjax: {self.message}\n".encode())
        os._exit(self.exit_code)


def _redirect_native_output(log: Path) -> int:
    """Redirects descriptors 1 and 2, not Python's streams, to a file; returns Python's stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    stdout, stderr = os.dup(1), os.dup(2)
    log.parent.mkdir(parents=True, exist_ok=True)
    file = open_regular(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout = os.fdopen(stdout, "w", 1, sys.stdout.encoding, sys.stdout.errors)
    sys.stderr = os.fdopen(stderr, "w", 1, sys.stderr.encoding, sys.stderr.errors)
    return stderr
