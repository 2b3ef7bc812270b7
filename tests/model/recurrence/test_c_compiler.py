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

from charjax.model.recurrence.c.compiler import build_folder, run_compiler

# As compilers do, it runs another process that would go on without it.
SLOW = '#!/bin/sh\necho $$ >> "$PIDS"\nsleep 300 &\necho $! >> "$PIDS"\nwait\n'
BUILD = """
import sys
from pathlib import Path
from charjax.model.recurrence.c.compiler import build_folder, run_compiler
with build_folder(Path(sys.argv[1])) as folder:
    run_compiler([sys.argv[2]], folder, 300.0)
"""


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
def test_a_killed_process_leaves_no_compiler_and_no_folder(tmp_path, slow, number):
    cache = tmp_path / "cache"
    cache.mkdir()
    command = [sys.executable, "-c", BUILD, str(cache), str(slow)]
    with subprocess.Popen(command) as process:
        wait_for(lambda: len(running(tmp_path)) == 2)
        assert len(list(cache.iterdir())) == 1
        process.send_signal(number)
    wait_for(lambda: not running(tmp_path) and not list(cache.iterdir()))


def test_a_compiler_that_takes_too_long_is_ended(tmp_path, slow):
    with build_folder(tmp_path) as folder:
        with pytest.raises(TimeoutError, match=r"no result after 0\.5 s"):
            run_compiler([str(slow)], folder, 0.5)
        wait_for(lambda: not running(tmp_path))
        assert run_compiler(["/bin/sh", "-c", f"echo x > {folder}/output"], folder, 20.0) == ""
        assert (folder / "output").read_text() == "x\n"
    assert not folder.exists()


def test_a_failure_has_its_reason(tmp_path):
    with build_folder(tmp_path) as folder:
        assert run_compiler(["/bin/sh", "-c", "echo no such header >&2; exit 3"], folder, 20.0) == (
            "no such header"
        )
        assert run_compiler(["/bin/sh", "-c", "exit 3"], folder, 20.0) == "exit status 3"
        assert "not found" in run_compiler([str(tmp_path / "missing")], folder, 20.0)


def test_old_build_folders_are_deleted_and_new_ones_stay(tmp_path):
    for name, hours in (("old", 2), ("new", 0)):
        (tmp_path / f"charjax-build-{name}").mkdir()
        then = time.time() - hours * 3600
        os.utime(tmp_path / f"charjax-build-{name}", (then, then))
    with build_folder(tmp_path) as folder:
        assert sorted(os.listdir(tmp_path)) == sorted(["charjax-build-new", folder.name])


def test_a_folder_that_cannot_be_written_is_not_needed(tmp_path):
    with build_folder(tmp_path / "missing") as folder:
        assert folder.is_dir()
    with build_folder(None) as folder:
        assert folder.is_dir()
