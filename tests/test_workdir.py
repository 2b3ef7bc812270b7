"""A run's folder has one writer, and a failed write leaves its files as they were."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from charjax.errors import HostError, InputError
from charjax.runtime.files import append_content
from charjax.workdir import Workdir
from tests.environment import contents

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


def test_a_folder_that_nothing_was_written_to_is_removed_after_an_error(tmp_path):
    folder, kept = Workdir(tmp_path / "a" / "b"), Workdir(tmp_path / "kept")
    with pytest.raises(ZeroDivisionError), folder.claim():
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    kept.path.mkdir()
    with pytest.raises(ZeroDivisionError), kept.claim():  # it was there before
        raise ZeroDivisionError
    with contextlib.suppress(ZeroDivisionError), folder.claim():
        folder.write_run({})
        raise ZeroDivisionError
    assert folder.run_json.exists()
    assert kept.path.exists()


def test_the_error_of_a_run_is_not_hidden_where_its_folder_was_moved_away(tmp_path):
    folder = Workdir(tmp_path / "here")
    with pytest.raises(ZeroDivisionError), folder.claim():
        raise ZeroDivisionError(folder.path.rename(tmp_path / "there"))


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_instead_of_a_folder_is_bad_input(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a folder"):
        Workdir(tmp_path / name).create()


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/40", "checkpoints/new"])
def test_no_run_starts_among_the_checkpoints_of_another(tmp_path, name, monkeypatch):
    outer = Workdir(tmp_path / "outer")
    (outer.checkpoints / "40").mkdir(parents=True)
    outer.write_run({})
    before = contents(tmp_path)
    monkeypatch.chdir(outer.path)
    message = f"name the folder of that run, {re.escape(str(outer.path))}, "
    for path in (outer.path / name, Path(name)):
        with pytest.raises(InputError, match=message):
            Workdir(path).create()
    assert contents(tmp_path) == before
    outer.create()


def test_a_read_only_folder_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    def refuse(path: Path, *_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "open", refuse)
    folder = Workdir(tmp_path)
    with pytest.raises(HostError, match=r"\.lock: Read-only file system; free disk space"):
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


def test_removing_the_lock_file_changes_nothing(tmp_path):
    folder = Workdir(tmp_path)
    with folder.lock():
        (tmp_path / ".lock").unlink()
        with pytest.raises(HostError, match="in use by another process"), folder.lock():
            pass
    with folder.lock():
        pass


def test_the_file_is_locked_too_as_older_versions_and_nfs_know_no_other_lock(tmp_path, monkeypatch):
    folder = Workdir(tmp_path)
    with folder.lock(), (tmp_path / ".lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock = fcntl.flock

    def on_nfs(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", on_nfs)
    with folder.lock(), pytest.raises(HostError, match=f"in use by process {os.getpid()} on "):
        folder.lock().__enter__()


def test_another_file_than_a_lock_is_not_overwritten(tmp_path):
    (tmp_path / ".lock").write_text("flock of somebody's editor")
    with pytest.raises(InputError, match=r"\.lock: not the lock of a run"):
        Workdir(tmp_path).lock().__enter__()
    assert (tmp_path / ".lock").read_text() == "flock of somebody's editor"


def test_logs_are_emptied_only_for_a_run_that_was_never_saved(tmp_path):
    folder = Workdir(tmp_path)
    folder.start()
    folder.metrics.write_text("killed before the first checkpoint\n")
    folder.start()
    assert folder.log_sizes() == {"metrics.jsonl": 0, "samples.txt": 0}
    folder.metrics.write_text("saved\n")
    folder.mark_saved()
    folder.mark_saved()
    with pytest.raises(InputError, match=r"has metrics\.jsonl but no checkpoint"):
        folder.start()
    assert folder.metrics.read_text() == "saved\n"


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "samples.txt", "curves.png"])
def test_a_new_run_overwrites_no_file(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"has {name} but no checkpoint"):
        Workdir(tmp_path).start()
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine"


WRITTEN = (
    "run.json", "metrics.jsonl", "samples.txt", "curves.png", ".lock", ".unsaved",
    "checkpoints", "checkpoints/20", "tensorboard",
)  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_a_link_where_a_run_writes_is_refused(tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "target")
    with pytest.raises(InputError, match=f"{name}: a link, which no run writes"):
        Workdir(tmp_path / "run").create()
    assert not (tmp_path / "target").exists()


def test_a_link_that_comes_later_is_not_written_through(tmp_path):
    folder = Workdir(tmp_path)
    writes = {name: lambda: folder.write_run({}) for name in ("run.json", ".run.json.tmp")}
    writes["metrics.jsonl"] = lambda: append_content(folder.metrics, b"text")
    for name, write in writes.items():
        (tmp_path / name).symlink_to(tmp_path / "target")
        with pytest.raises(InputError, match="a link"):
            write()
        (tmp_path / name).unlink()
    assert os.listdir(tmp_path) == []


def test_a_name_that_is_too_long_is_an_error_of_the_host(tmp_path):
    folder = Workdir(tmp_path / ("a" * 300))
    with pytest.raises(HostError, match=r"File name too long; .*choose another"), folder.claim():
        pass


@pytest.mark.parametrize("name", ["a\\b", "a[b]"])
def test_a_folder_that_the_store_of_arrays_gets_wrong_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot be saved below a folder with"):
        Workdir(tmp_path / name)
