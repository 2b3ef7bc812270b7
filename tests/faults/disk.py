"""A disk that is full at many positions of a save: older checkpoints must stay intact.

Uses a small tmpfs where this process may mount one. The free space grows from round to round, so
that the first save fails in `run.json` and the last at the end of a checkpoint. Elsewhere the
system's limit on file sizes (RLIMIT_FSIZE) stands in for the disk.
"""

from __future__ import annotations

import functools
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from charjax.config import Config
from charjax.errors import CharjaxError, HostError
from charjax.train.loop import train
from charjax.workdir import Workdir
from tests.faults.trial import (
    leaf_digests,
    small_config,
    sound_steps,
    verdicts,
    write_words,
)
from tests.train.tiny import Recorder

_STEPS, _MORE = 20, 10
_DISK_BYTES = 8 * 2**20


def check_disk(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Fills the disk at n positions of a save and returns the figures of the page."""
    text = write_words(folder / "text.txt", 600)
    limits = {"eval_every": 10, "checkpoint_every": 10, "keep": 3}
    before, after = (small_config(text, max_steps=n, **limits) for n in (_STEPS, _STEPS + _MORE))
    good, whole = folder / "good", folder / "whole"
    train(before, good, Recorder())
    shutil.copytree(good, whole)
    train(after, whole, Recorder())
    last = leaf_digests(whole, _STEPS + _MORE)
    counts: Counter[str] = Counter()
    problems: list[str] = []
    fill, needed, kind = _filler(whole)
    for number in range(n):
        free = number * needed // n
        with _disk(folder) as disk:
            run = shutil.copytree(good, disk / "run")
            found = _fail_and_resume(run, after, last, free, fill, counts)
        problems += [f"with {free} bytes free: {problem}" for problem in found]
        report(f"{free} bytes free: {len(found)} problems")
    return {
        "positions": n,
        "how": kind,
        "bytes_of_a_save": needed,
        "refused_with_exit_4": counts["refused"],
        "older_checkpoints_intact": counts["intact"],
        "resumed_equal_once_there_was_room": counts["equal"],
        "problems": problems[:20],
        "passed": not problems and counts["refused"] == n,
    }


def _fail_and_resume(
    run: Path,
    config: Config,
    last: dict[str, str],
    free: int,
    fill: Callable[[Path, int], Any],
    counts: Counter[str],
) -> list[str]:
    """Trains on the full disk, then with free space again; returns what went wrong."""
    problems = []
    before = {step: leaf_digests(run, step) for step in sound_steps(run)}
    try:
        with fill(run, free):
            train(config, run, Recorder())
        problems.append("it was not refused")
    except HostError as error:
        counts["refused"] += 1
        if "\n" in str(error) or str(run) not in str(error):
            problems.append(f"the message: {error}")
    except (CharjaxError, OSError) as error:
        problems.append(f"{type(error).__name__}: {error}")
    bad = [f"checkpoint {step}: {problem}" for step, problem in verdicts(run) if problem]
    bad += [f"checkpoint {step} lost" for step in set(before) - set(sound_steps(run))]
    counts["intact"] += not bad
    train(config, run, Recorder())
    equal = leaf_digests(run, config.train.max_steps) == last
    counts["equal"] += equal
    return problems + bad + ([] if equal else ["the resumed run ended differently"])


@contextmanager
def _disk(folder: Path) -> Iterator[Path]:
    """A folder on a small tmpfs, or an ordinary one where this process may not mount."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = _can_mount()
    if mounted:
        options = ["-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(disk)]
        subprocess.run(["mount", *options], check=True)
    try:
        yield disk
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
        shutil.rmtree(disk)


@functools.cache
def _can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "tmpfs", folder]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


def _filler(whole: Path) -> tuple[Callable[[Path, int], Any], int, str]:
    """(context manager that limits the free bytes, bytes of a save, name of the method)."""
    # The number of files that the array store writes varies; take the smallest save, and half of
    # its largest file: beside other programs, the next save may have more files, each smaller.
    steps = (Workdir(whole).checkpoints / str(step) for step in sound_steps(whole))
    sizes = [[p.stat().st_size for p in step.rglob("*") if p.is_file()] for step in steps]
    if _can_mount():
        return _full_disk, min(map(sum, sizes)), "full tmpfs"
    return _small_files, min(map(max, sizes)) // 2, "limit on the size of a file"


@contextmanager
def _full_disk(run: Path, free: int) -> Iterator[None]:
    filler = run.parent / "filler"
    occupied = shutil.disk_usage(run).free - free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, occupied)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def _small_files(run: Path, free: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
