"""SIGHUP, SIGUSR1, SIGXCPU, a closed pipe and a closed terminal, while a run trains.

As with the other signals, one run is ended and started again until it finishes. Its interval of
checkpoints is longer than the run, so that it saves only where it evaluates, and where it is ended.
A closed pipe does not end it.
"""

from __future__ import annotations

import fcntl
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.trial import STEPS, EndedRun, Trial, sound_steps, wait_until_it_trains

_CODES = {"SIGHUP": 129, "SIGUSR1": 138, "SIGXCPU": 152, "pipe": 0, "terminal": 129}
_BUSY_S = 0.4
_FLAGS = ("--config.train.checkpoint_every=1000", "--config.train.keep=1000")


def check_endings(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Ends a run n times, in turn in each way, and returns the figures of the page."""
    # Under nohup it is ignored, which the processes would inherit.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    trial = Trial.prepare(folder)
    ender = _Ender(trial, trial.reference(checkpoint_every=1), report)
    ways = list(_CODES)
    while (done := sum(ender.counts[way] for way in ways)) < n:
        ender.end(ways[done % len(ways)])
    return {
        "endings": n,
        "by_way": {way: ender.counts[way] for way in ways},
        "steps_lost": ender.counts["lost"],
        "most_seconds_to_exit": round(max(ender.seconds, default=0.0), 2),
        "problems": ender.problems[:20],
        "passed": not ender.problems,
    }


class _Ender(EndedRun):
    draw = random.Random(3)

    def end(self, way: str) -> None:
        """Runs one process and ends it, unless it has finished before."""
        process, close = self._start(way)
        wait_until_it_trains(process, self.workdir)
        time.sleep(self.draw.uniform(0, _BUSY_S))
        ended_at, alive = time.monotonic(), process.poll() is None
        if way.startswith("SIG") and alive:
            process.send_signal(signal.Signals[way])
        else:
            close()
        errors = process.stderr.read() if process.stderr else ""
        code = process.wait()
        seconds = time.monotonic() - ended_at
        if process.stdout:
            process.stdout.close()
        if process.stderr:
            process.stderr.close()
        if alive and (code == _CODES[way] or code != 0):
            self.counts[way] += 1
            self.judge(way, code, _CODES[way], errors)
            if way == "pipe" and max(sound_steps(self.workdir), default=0) != STEPS:
                self.problems.append("pipe: the run ended before its last step")
            if code:
                self.seconds.append(seconds)
        if code == 0:  # also where it had finished just before
            shutil.rmtree(self.workdir)

    def _start(self, way: str) -> tuple[subprocess.Popen[str], Callable[[], None]]:
        """A process, and what closes its standard output."""
        if way != "terminal":
            process = self.trial.start(self.workdir, *_FLAGS)
            assert process.stdout is not None
            reader = process.stdout
            if way != "pipe":
                _drain(reader.fileno())
            return process, reader.close
        terminal, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, *self.trial.command(self.workdir, *_FLAGS)],
            env=self.trial.environment(),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            text=True,
        )
        os.close(theirs)
        return process, lambda: os.close(terminal)


def _drain(descriptor: int) -> None:
    """Reads all that a process writes, in a thread."""

    def read() -> None:
        while os.read(descriptor, 1 << 16):
            pass

    threading.Thread(target=read, daemon=True).start()


if __name__ == "__main__":  # becomes the command, with its standard input as controlling terminal
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.execv(sys.argv[1], sys.argv[1:])
