"""kill -9 at random moments; what is left must go on as if nothing had happened.

One run is killed and started again until it finishes, so that every start but the first
resumes what the kill before it left. After each kill, the whole folder is compared with an
undisturbed run: every loss in hexadecimal, every array of every checkpoint by its digest.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability.trial import (
    CHECKPOINT_EVERY,
    STEPS,
    Reference,
    Trial,
    read_series,
    sound_steps,
    wait_until_it_trains,
)
from charjax.checkpoint.store import UNFINISHED

_BUSY_S = 1.5  # in which a run that trains is killed
_ANYWHERE = 0.35  # of the kills fall anywhere in a process, the others where it trains and saves


def prove_kill(n: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The figures of n kills."""
    trial, draw = Trial.load_dataset(folder), random.Random(1)
    reference = trial.reference()
    return _Killer(trial, reference, draw, say).kill(n)


class _Killer:
    def __init__(
        self, trial: Trial, reference: Reference, draw: random.Random, say: Callable[[str], None]
    ) -> None:
        self.trial, self.reference, self.draw, self.say = trial, reference, draw, say
        self.workdir = trial.folder / "run"
        self.counts: Counter[str] = Counter()
        self.lost: list[int] = []
        self.problems: list[str] = []
        self.life_s = 6.0  # of a process from start to end; measured as runs finish

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
        """One process: killed, or left to finish where it is quicker than its killer."""
        before, litter = self._newest(), _litter(self.workdir)
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
            self._after_kill(before, litter)
        elif process.returncode == 0:
            self.life_s = time.monotonic() - started
            self._after_end()
        else:
            self.counts["unrecoverable"] += 1
            self.problems.append(f"exit {process.returncode}: {errors[-500:]}")
            shutil.rmtree(self.workdir)

    def _wait(self, process: subprocess.Popen[str]) -> None:
        """Until the moment of the kill, or the end of the process."""
        if self.draw.random() < _ANYWHERE:
            time.sleep(self.draw.uniform(0, self.life_s))
            return
        wait_until_it_trains(process, self.workdir)
        time.sleep(self.draw.uniform(0, _BUSY_S))

    def _after_kill(self, before: int, litter: set[tuple[str, int]]) -> None:
        self.counts["kills"] += 1
        self.counts["inside_a_save"] += bool(_litter(self.workdir) - litter)
        done, newest = max(read_series(self.workdir), default=0), self._newest()
        self.counts["before_the_first_step"] += done == before == newest
        self.lost.append(done - newest)
        problems = self.reference.problems(self.workdir) if self.workdir.exists() else []
        if newest < before:
            problems.append(f"the newest step was {before} and is {newest}")
        self.counts["equal"] += not problems
        self.problems += problems
        number = self.counts["kills"]
        self.say(f"kill {number}: step {done}, checkpoint {newest}, {len(self.problems)} problems")

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


def _litter(workdir: Path) -> set[tuple[str, int]]:
    """What saves that were cut short have left: the name and the inode of each."""
    found = (workdir / "checkpoints").glob(f"*{UNFINISHED}*")
    return {(path.name, path.stat().st_ino) for path in found}
