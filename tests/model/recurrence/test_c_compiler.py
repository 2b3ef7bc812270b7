"""However a process ends, it leaves no compiler running and no folder of a compilation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from charjax.model.recurrence.c.compiler import run_compiler

# As compilers do, it runs another process that would go on without it.
SLOW = '#!/bin/sh\necho $$ >> "$PIDS"\nsleep 300 &\necho $! >> "$PIDS"\nwait\n'
BUILD = """
import sys
from pathlib import Path
from charjax.model.recurrence.c.compiler import run_compiler
run_compiler([sys.argv[2]], Path(sys.argv[1]), 300.0)
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


@pytest.fixture
def slow(tmp_path, monkeypatch) -> Iterator[Path]:
    """A compiler that takes minutes, and writes the ids of its processes to a file."""
    compiler = tmp_path / "slow"
    compiler.write_text(SLOW)
    compiler.chmod(0o755)
    (tmp_path / "pids").touch()
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    yield compiler
    for pid in running(tmp_path):
        os.kill(pid, signal.SIGKILL)


def running(folder: Path) -> list[int]:
    """The compiler's processes that run still."""
    pids = map(int, (folder / "pids").read_text().split())
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [p for p, stat in states.items() if stat.exists() and ") Z" not in stat.read_text()]


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_no_compiler_and_no_folder(tmp_path, folder, slow, number):
    command = [sys.executable, "-c", BUILD, str(folder), str(slow)]
    with subprocess.Popen(command) as process:
        wait_for(lambda: len(running(tmp_path)) == 2)
        assert folder.exists()
        process.send_signal(number)
    wait_for(lambda: not running(tmp_path) and not folder.exists())


def test_a_compiler_that_takes_too_long_is_ended(tmp_path, folder, slow):
    with pytest.raises(TimeoutError, match=r"no result after 0\.5 s"):
        run_compiler([str(slow)], folder, 0.5)
    wait_for(lambda: not running(tmp_path))


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("exit 0", ""),
        ("echo no such header >&2; exit 3", "no such header"),
        ("exit 3", "exit status 3"),
        ("exec /missing", "not found"),
    ],
)
def test_a_failure_has_its_reason(folder, script, failure):
    found = run_compiler(["/bin/sh", "-c", script], folder, 20.0)
    assert failure in found
    assert bool(found) == bool(failure)
