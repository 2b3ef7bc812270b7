"""kill -9 at random moments: the run must resume as if it had not been killed.

One run is killed and started again until it finishes, so that every start but the first
resumes what the kill before it left. After each kill, the whole folder is compared with an
undisturbed run: every loss in hexadecimal, every array of every checkpoint by its digest.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from charjax.checkpoint.files import UNFINISHED
from tests.faults.trial import (
    CHECKPOINT_EVERY,
    STEPS,
    EndedRun,
    Reference,
    Trial,
    read_series,
    sound_steps,
    wait_until_it_trains,
)

_BUSY_S = 1.5  # a training process is killed within this time
_ANYWHERE = 0.35  # fraction of kills at any time of a process; others while it trains and saves


def check_kill(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Kills n processes and returns the figures of the page."""
    trial = Trial.prepare(folder)
    return _Killer(trial, trial.reference(), report).kill(n)


class _Killer(EndedRun):
    draw = random.Random(1)
    life_s = 6.0  # of a process that is not killed; updated as runs finish

    def __init__(self, trial: Trial, reference: Reference, report: Callable[[str], None]) -> None:
        super().__init__(trial, reference, report)
        self.lost: list[int] = []

    def kill(self, n: int) -> dict[str, Any]:
        while self.counts["kills"] < n or self.workdir.exists():
            self._start(killing=self.counts["kills"] < n)
        counts = self.counts
        return {
            "kills": n,
            "inside_a_save": counts["inside_a_save"],
            "before_the_first_step": counts["before_the_first_step"],
            "unrecoverable": counts["unrecoverable"],
            "checkpoint_every_steps": CHECKPOINT_EVERY,
            "most_steps_lost": max(self.lost),
            "lost_beyond_one_interval": sum(x > CHECKPOINT_EVERY for x in self.lost),
            "folders_equal_after_the_kill": counts["equal"],
            "runs_finished": counts["finished"],
            "runs_finished_equal": counts["finished_equal"],
            "problems": self.problems[:20],
            "passed": not self.problems and counts["equal"] == n,
        }

    def _start(self, *, killing: bool) -> None:
        """Runs one process, which is killed unless it finishes first."""
        before, unfinished = self._newest(), _unfinished_saves(self.workdir)
        started = time.monotonic()
        process = self.trial.start(self.workdir)
        if killing:
            self._wait(process)
        killed = killing and process.poll() is None
        if killed:
            process.kill()
        output, errors = process.communicate()
        if f"at step {before:,}" not in output and before and "resuming" in output:
            self.problems.append(f"resumed elsewhere than at step {before}")
        if killed and process.returncode == -9:
            self._after_kill(before, unfinished)
        elif process.returncode == 0:
            self.life_s = time.monotonic() - started
            self._after_end()
        else:
            self.counts["unrecoverable"] += 1
            self.problems.append(f"exit {process.returncode}: {errors[-500:]}")
            shutil.rmtree(self.workdir)

    def _wait(self, process: subprocess.Popen[str]) -> None:
        """Waits until the time of the kill, or the end of the process."""
        if self.draw.random() < _ANYWHERE:
            time.sleep(self.draw.uniform(0, self.life_s))
            return
        wait_until_it_trains(process, self.workdir)
        time.sleep(self.draw.uniform(0, _BUSY_S))

    def _after_kill(self, before: int, unfinished: set[tuple[str, int]]) -> None:
        self.counts["kills"] += 1
        self.counts["inside_a_save"] += bool(_unfinished_saves(self.workdir) - unfinished)
        done, newest = max(read_series(self.workdir), default=0), self._newest()
        self.counts["before_the_first_step"] += done == before == newest
        self.lost.append(done - newest)
        problems = self.reference.problems(self.workdir)
        if newest < before:
            problems.append(f"the newest step was {before} and is {newest}")
        self.counts["equal"] += not problems
        self.problems += problems
        number = self.counts["kills"]
        self.report(
            f"kill {number}: step {done}, checkpoint {newest}, {len(self.problems)} problems"
        )

    def _after_end(self) -> None:
        self.counts["finished"] += 1
        problems = self.reference.problems(self.workdir)
        if max(read_series(self.workdir)) != STEPS or self._newest() != STEPS:
            problems.append("ended before its last step")
        self.counts["finished_equal"] += not problems
        self.problems += problems
        shutil.rmtree(self.workdir)

    def _newest(self) -> int:
        return max(sound_steps(self.workdir), default=0)


def _unfinished_saves(workdir: Path) -> set[tuple[str, int]]:
    """(name, inode) of every unfinished checkpoint folder."""
    found = (workdir / "checkpoints").glob(f"*{UNFINISHED}*")
    return {(path.name, path.stat().st_ino) for path in found}
