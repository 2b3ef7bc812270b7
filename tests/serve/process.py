"""`charjax serve` as a process, on a free port of this machine."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple


class Served(NamedTuple):
    process: subprocess.Popen
    url: str


@contextlib.contextmanager
def serve(*arguments: str, timeout: float = 15) -> Iterator[Served]:
    """A running server; it is asked to stop at the end, and must do so with exit code 0."""
    command = [sys.executable, "-m", "charjax", "serve", "--port=0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"serving on (http://\S+)", line):
                yield Served(process, found[1])
                break
        else:
            raise RuntimeError("".join(lines))
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=timeout)
        assert process.returncode == 0, rest
    finally:
        process.kill()
        process.wait()
