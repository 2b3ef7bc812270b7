"""A run's folder has one writer, and a failed write leaves its files as they were."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from charjax.errors import HostError, InputError
from charjax.workdir import Workdir

HOLD_LOCK = """
import sys, time
from pathlib import Path
from charjax.workdir import Workdir
assert "jax" not in sys.modules
with Workdir(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    folder = Workdir(tmp_path)
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(HostError, match=f"in use by process {holder.pid} on "):
                folder.lock().__enter__()
        finally:
            holder.send_signal(signal.SIGKILL)
    with folder.lock():
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()


def test_the_lock_can_be_taken_again_after_an_error(tmp_path):
    folder = Workdir(tmp_path)
    with pytest.raises(ZeroDivisionError), folder.lock():
        raise ZeroDivisionError
    with folder.lock(), pytest.raises(HostError), folder.lock():
        pass


def test_create_makes_the_folder_and_may_be_called_again(tmp_path):
    folder = Workdir(tmp_path / "a" / "b")
    folder.create()
    folder.write_run({"x": 1})
    folder.create()
    assert json.loads(folder.run_json.read_bytes()) == {"x": 1}


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_instead_of_a_folder_is_bad_input(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a folder"):
        Workdir(tmp_path / name).create()


def test_a_read_only_folder_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    def refuse(path: Path, *_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "open", refuse)
    folder = Workdir(tmp_path)
    with pytest.raises(HostError, match=r"\.lock: Read-only file system; make room"):
        folder.create()
    with pytest.raises(HostError, match="Read-only"), folder.lock():
        pass


def test_run_json_is_replaced_atomically(tmp_path, monkeypatch):
    folder = Workdir(tmp_path)
    values = {"vocabulary": ["\n", "é", "日", "😀"], "steps": 10, "split": [0.9, 0.1]}
    folder.write_run(values)
    assert os.listdir(tmp_path) == ["run.json"]

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError, match="No space left on device"):
        folder.write_run({"steps": 20})
    assert json.loads(folder.run_json.read_bytes()) == values


def test_logs_are_truncated_and_never_extended(tmp_path):
    folder = Workdir(tmp_path)
    assert folder.log_sizes() == {"metrics.jsonl": 0, "samples.txt": 0}
    folder.metrics.write_bytes(b"one\n")
    sizes = folder.log_sizes()
    folder.metrics.write_bytes(b"one\ntwo\n")
    folder.samples.write_bytes("schön".encode())
    folder.truncate_logs(sizes)
    assert (folder.metrics.read_bytes(), folder.samples.read_bytes()) == (b"one\n", b"")
    folder.truncate_logs({"metrics.jsonl": 100, "samples.txt": 100})
    assert folder.log_sizes() == sizes
    folder.samples.unlink()
    folder.truncate_logs(sizes)
    assert not folder.samples.exists()
