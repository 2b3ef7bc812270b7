"""SIGTERM and SIGINT at random moments: right exit code, in time, no finished step lost.

As with kill -9, one run is stopped and started again until it finishes. A third of the signals
fall while Python, JAX and the text are loaded, a third while the first step compiles (for which
the compilation cache is emptied), a third between steps, evaluations and saves.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.trial import EndedRun, Trial, wait_until_it_trains

_SECONDS = 10  # a process must have ended this long after a signal
_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
_PYTHON_STARTS_S = 0.08  # until Python has started, no program can handle a signal
_BUSY_S = 0.8


def check_signals(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Sends n signals, SIGTERM and SIGINT in turn, and returns the figures of the page."""
    # A background command may have inherited an ignored SIGINT, which its children would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trial = Trial.prepare(folder)
    return _Stopper(trial, trial.reference(checkpoint_every=1), report).stop(n)


class _Stopper(EndedRun):
    draw = random.Random(2)

    def stop(self, n: int) -> dict[str, Any]:
        sent = 0
        while sent < n or self.workdir.exists():
            number = (signal.SIGTERM, signal.SIGINT)[sent % 2] if sent < n else None
            sent += self._start(number, phase=("loading", "compiling", "working")[sent // 2 % 3])
        return {
            "signals": n,
            "right_exit_code": {s.name: self.counts[f"{s.name} right"] for s in _CODES},
            "by_phase": {p: self.counts[p] for p in ("loading", "compiling", "working")},
            "saved_at_the_signal": self.counts["saved"],
            "finished_steps_lost": self.counts["lost"],
            "most_seconds_to_exit": round(max(self.seconds), 2),
            "over_10_s": sum(s > _SECONDS for s in self.seconds),
            "second_interrupt_most_seconds": self._second_interrupts(max(1, n // 20)),
            "runs_finished": self.counts["finished"],
            "problems": self.problems[:20],
            "passed": not self.problems,
        }

    def _start(self, number: signal.Signals | None, phase: str) -> bool:
        """Runs one process; returns whether a signal reached it."""
        if phase == "compiling":
            shutil.rmtree(self.trial.folder / "cache", ignore_errors=True)
        process = self.trial.start(self.workdir)
        if number is not None:
            self._wait(process, phase)
        sent_at = time.monotonic()
        reached = number is not None and process.poll() is None
        if reached and number is not None:
            process.send_signal(number)
        _, errors = process.communicate()
        if process.returncode == 0:  # it finished before the signal
            self._after_end()
            return False
        if not reached or number is None:
            self.problems.append(f"exit {process.returncode}: {errors[-500:]}")
            shutil.rmtree(self.workdir, ignore_errors=True)
            return False
        self.counts[phase] += 1
        self.seconds.append(time.monotonic() - sent_at)
        self._after_signal(number, process.returncode, errors)
        return True

    def _wait(self, process: subprocess.Popen[str], phase: str) -> None:
        """Waits until the time of the signal, or the end of the process."""
        if phase == "loading":
            time.sleep(self.draw.uniform(_PYTHON_STARTS_S, 2.5))
            return
        if phase == "compiling":
            assert process.stdout is not None
            for line in process.stdout:  # the last message before the first step
                if line.startswith("steps:"):
                    break
            time.sleep(self.draw.uniform(0, 1.5))
            return
        wait_until_it_trains(process, self.workdir)
        time.sleep(self.draw.uniform(0, _BUSY_S))

    def _after_signal(self, number: signal.Signals, code: int, errors: str) -> None:
        is_right = self.judge(number.name, code, _CODES[number], errors)
        self.counts[f"{number.name} right"] += is_right
        self.counts["saved"] += "stopped and saved" in errors
        if self.seconds[-1] > _SECONDS:
            self.problems.append(f"{number.name}: took {self.seconds[-1]:.1f} s")

    def _after_end(self) -> None:
        self.counts["finished"] += 1
        self.problems += self.reference.problems(self.workdir)
        shutil.rmtree(self.workdir)

    def _second_interrupts(self, n: int) -> float:
        """Seconds until the slowest process ended after a second SIGINT."""
        seconds = []
        for _ in range(n):
            workdir = self.trial.folder / "second"
            shutil.rmtree(self.trial.folder / "cache", ignore_errors=True)
            process = self.trial.start(workdir)
            self._wait(process, "compiling")
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
            sent_at = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.communicate()
            seconds.append(time.monotonic() - sent_at)
            if process.returncode != _CODES[signal.SIGINT]:
                self.problems.append(f"second SIGINT: exit {process.returncode}")
            shutil.rmtree(workdir, ignore_errors=True)
        return round(max(seconds), 2)
