"""Two processes started on one folder at the same time: exactly one of them runs.

Both are forked from a process that has imported everything, so that they reach the lock within
milliseconds of each other; the winner is killed, and the next pair must find the lock free. Every
20th pair is two commands instead, whose winner trains to the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import charjax.train.loop  # noqa: F401 so that a fork starts at the lock
from charjax.cli.main import main
from tests.faults.trial import Reference, Trial, fork, sound_steps

_LOSER, _SECONDS = 4, 5.0  # exit code and time limit of the process that is refused
_COMMANDS = 20  # every 20th pair


def check_two_writers(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Starts n pairs of processes and returns the figures of the page."""
    trial = Trial.prepare(folder)
    reference = trial.reference()
    os.environ |= trial.environment()
    counts: Counter[str] = Counter()
    problems: list[str] = []
    slowest = 0.0
    for number in range(n):
        if number % _COMMANDS == 0:
            problems += _start_commands(trial, reference)
            counts["commands"] += 1
        else:
            found, seconds = _fork_two(trial)
            problems += found
            slowest = max(slowest, seconds)
        counts["one ran"] += not problems
        report(f"double start {number + 1}: {len(problems)} problems")
    return {
        "double_starts": n,
        "of_commands": counts["commands"],
        "exactly_one_ran": counts["one ran"],
        "slowest_refusal_s": round(slowest, 2),
        "problems": problems[:20],
        "passed": not problems,
    }


def _fork_two(trial: Trial) -> tuple[list[str], float]:
    """(problems, seconds until one was refused) of two forks; kills the other one."""
    workdir = trial.folder / "forked"
    started = time.monotonic()
    processes = {fork(lambda: _train(trial, workdir)) for _ in range(2)}
    loser, status = os.wait()
    seconds = time.monotonic() - started
    (winner,) = processes - {loser}
    problems = []
    if os.waitstatus_to_exitcode(status) != _LOSER or seconds > _SECONDS:
        problems.append(f"the loser: status {status} after {seconds:.1f} s")
    if os.waitpid(winner, os.WNOHANG) != (0, 0):
        problems.append("the winner has ended, too")
    else:
        os.kill(winner, signal.SIGKILL)
        os.waitpid(winner, 0)
    return problems, seconds


def _train(trial: Trial, workdir: Path) -> int:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    return main(["train", f"--config={trial.config}", f"--workdir={workdir}"])


def _start_commands(trial: Trial, reference: Reference) -> list[str]:
    """Problems of two concurrent commands, of which one trains to the end."""
    workdir = trial.folder / "run"
    processes = [trial.start(workdir) for _ in range(2)]
    errors_of = [process.communicate()[1] for process in processes]
    ends = [(p.returncode, errors) for p, errors in zip(processes, errors_of, strict=True)]
    problems = []
    if sorted(code for code, _ in ends) != [0, _LOSER]:
        problems.append(f"the two ended with {[code for code, _ in ends]}")
    refusals = [errors for code, errors in ends if code == _LOSER]
    if not all("in use by process" in line and line.count("\n") == 1 for line in refusals):
        problems.append(f"the refusal was: {refusals}")
    problems += reference.problems(workdir)
    if sound_steps(workdir)[-1] != max(reference.leaves):
        problems.append("the winner ended before its last step")
    shutil.rmtree(workdir)
    return problems
