"""Commands that read a run's folder while the run trains, saves and prunes its checkpoints.

The run saves every 10 steps and keeps one checkpoint beside the best, so that most readings see
one being deleted. Four processes read at a time, each with `info`, `verify`, `sample` and `score`
in turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.trial import ROOT, Trial, call, wait_until_it_trains

_READERS = 4
_EVERY = 10
_TRAIN = (
    "--config.train.keep=1",
    f"--config.train.checkpoint_every={_EVERY}",
    f"--config.train.eval_every={_EVERY}",
    "--config.train.max_steps=100000000",
    "--config.train.log_every=1000",
)


def check_readers(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Reads n times beside a run and returns the figures of the page."""
    trial, workdir = Trial.prepare(folder), folder / "run"
    run = trial.start(workdir, *_TRAIN)
    try:
        while not list(workdir.glob("checkpoints/[0-9]*")):
            wait_until_it_trains(run, workdir)
            if run.poll() is not None:
                raise RuntimeError(f"the run ended: {run.communicate()[1]}")
        first = _newest(workdir)
        readings = _read_all(trial, workdir, n)
        last, alive = _newest(workdir), run.poll() is None
    finally:
        run.kill()
        run.communicate()
    problems = [f"{name}: {problem}" for name, problem in readings if problem]
    problems += [] if alive else ["the run ended before the readings"]
    for problem in problems[:20]:
        report(problem)
    return {
        "readings": len(readings),
        "at_a_time": _READERS,
        "by_command": dict(Counter(name for name, _ in readings)),
        "checkpoint_every_steps": _EVERY,
        "saves_meanwhile": (last - first) // _EVERY,
        "wrong_verdicts": len(problems),
        "problems": problems[:20],
        "passed": not problems and len(readings) == n,
    }


def _newest(workdir: Path) -> int:
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return max(int(name) for name in names if name.isdecimal())


def _read_all(trial: Trial, workdir: Path, n: int) -> list[tuple[str, str]]:
    """(command, problem or "") of n readings."""
    counts = [n // _READERS + (i < n % _READERS) for i in range(_READERS)]
    readers = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(workdir), str(trial.folder / "text.txt"), str(k)],
            cwd=ROOT,
            env=trial.environment(),
            stdout=subprocess.PIPE,
        )
        for k in counts
    ]
    outputs = [reader.communicate()[0] for reader in readers]
    return [(name, problem) for output in outputs for name, problem in json.loads(output)]


def _read(workdir: str, text: str, count: int) -> list[tuple[str, str]]:
    commands = {
        "info": [],
        "verify": [],
        "sample": ["--num_chars=20"],
        "score": [f"--file={text}"],
    }
    names = [[*commands][i % len(commands)] for i in range(count)]
    return [(name, _problem([name, f"--workdir={workdir}", *commands[name]])) for name in names]


def _problem(arguments: list[str]) -> str:
    """What is wrong with a command's verdict; "" if nothing is."""
    code, out, said = call(arguments)
    is_right = code == 0 and out and "damaged" not in said and "not a" not in said
    if arguments[0] == "verify" and is_right:
        is_right = set(json.loads(out).values()) == {"good"}
    return "" if is_right else f"exit {code}: {out[-200:]} {said[-300:]}"


if __name__ == "__main__":
    print(json.dumps(_read(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
