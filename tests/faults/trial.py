"""A small run to inject faults into, and the undisturbed run that it is compared with."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charjax.checkpoint.checkpoints import Checkpoints
from charjax.cli.main import main
from charjax.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    to_dict,
)
from charjax.workdir import Workdir
from tests.environment import with_devices

STEPS = 300
CHECKPOINT_EVERY = 5
ROOT = Path(__file__).parents[2]
_WORDS = "the cat sat on a mat while it rained over there and nobody came"


def small_config(text: Path, *, schedule: str = "constant", **limits: int) -> Config:
    """A run of 300 steps of under a millisecond each, with dropout, EMA and a schedule.

    Args:
      text: its file.
      schedule: of the learning rate; one that depends on the last step refuses a longer run.
      limits: fields of `TrainConfig` to change.
    """
    intervals = {"eval_every": 100, "checkpoint_every": CHECKPOINT_EVERY, "log_every": 1}
    return Config(
        data=DataConfig(path=str(text), batch_size=8, seq_len=16),
        model=ModelConfig(hidden=16, embed=8, dropout=0.1),
        optim=OptimConfig(schedule=schedule, ema=0.9),
        train=TrainConfig(**{"max_steps": STEPS, **intervals, **limits}),
        sample=SampleConfig(num_chars=0),
    )


def write_config(file: Path, config: Config) -> Path:
    """Writes a config file that returns this config."""
    made = f"get_config = lambda: ConfigDict({to_dict(config)!r})\n"
    file.write_text(f"from ml_collections import ConfigDict\n{made}", encoding="utf-8")
    return file


@dataclass(frozen=True)
class Trial:
    """A config file that trains within seconds, and a compilation cache for its runs."""

    folder: Path

    @classmethod
    def prepare(cls, folder: Path) -> Trial:
        """Writes the text and the config file to a folder."""
        text = write_words(folder / "text.txt", 3000)
        write_config(folder / "config.py", small_config(text, schedule="cosine"))
        return cls(folder)

    @property
    def config(self) -> Path:
        """The config file."""
        return self.folder / "config.py"

    def command(self, workdir: Path, *flags: str) -> list[str]:
        """The command line that trains or resumes a run."""
        train = [f"--config={self.config}", f"--workdir={workdir}", *flags]
        return [sys.executable, str(ROOT / "launch.py"), *train]

    def environment(self) -> dict[str, str]:
        """The environment of every run: one CPU device, the cache, this checkout on the path."""
        return with_devices(1) | {
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
            "PYTHONPATH": str(ROOT),
        }

    def start(self, workdir: Path, *flags: str) -> subprocess.Popen[str]:
        """Starts `command` with pipes for its standard output and standard error."""
        return subprocess.Popen(
            self.command(workdir, *flags),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def reference(self, *, checkpoint_every: int = CHECKPOINT_EVERY) -> Reference:
        """Trains without a disturbance and records the result; fills the compilation cache."""
        workdir = self.folder / "reference"
        more = f"--config.train.checkpoint_every={checkpoint_every}"
        process = self.start(workdir, "--config.train.keep=1000", more)
        _, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the undisturbed run failed: {errors}")
        leaves = {step: leaf_digests(workdir, step) for step in sound_steps(workdir)}
        return Reference(read_series(workdir), leaves)


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: losses of each step in hexadecimal, digests of each checkpoint."""

    series: dict[int, tuple[str, ...]]
    leaves: dict[int, dict[str, str]]

    def problems(self, workdir: Path) -> list[str]:
        """How the run in `workdir`, up to its last step, differs from this one."""
        found = []
        series = read_series(workdir)
        if list(series) != list(range(1, len(series) + 1)):
            found.append("a record is missing or duplicated")
        found += [
            f"losses of step {step} differ"
            for step, losses in series.items()
            if losses != self.series[step]
        ]
        for step, problem in verdicts(workdir):
            if problem:
                found.append(f"checkpoint {step}: {problem}")
            elif leaf_digests(workdir, step) != self.leaves[step]:
                found.append(f"checkpoint {step} differs")
        return found


class EndedRun:
    """A run that is ended again and again, and each time starts where it was; what was found."""

    def __init__(self, trial: Trial, reference: Reference, report: Callable[[str], None]) -> None:
        self.trial, self.reference, self.report = trial, reference, report
        self.workdir = trial.folder / "run"
        self.counts: Counter[str] = Counter()
        self.seconds: list[float] = []  # from each signal to the end of its process
        self.problems: list[str] = []

    def judge(self, way: str, code: int, wanted: int, errors: str) -> bool:
        """Notes what is wrong after one way of ending; whether the exit code is right."""
        # Killed by a signal that charjax does not handle yet: a shell shows the same exit code.
        is_right = wanted in (code, 128 - code)
        if not is_right or "Traceback" in errors or len(errors.splitlines()) > 1:
            self.problems.append(f"{way}: exit {code}: {errors[-500:]}")
        done = max(read_series(self.workdir), default=0)
        newest = max(sound_steps(self.workdir), default=0)
        self.counts["lost"] += max(done - newest, 0)
        if done > newest:
            self.problems.append(f"{way}: step {done} was done, {newest} saved")
        self.problems += self.reference.problems(self.workdir)
        self.report(f"{way}: exit {code} at step {newest}")
        return is_right


def fork(act: Callable[[], int]) -> int:
    """Calls a function in a fork of this process, which ends with its result; the fork's number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fork() in a process with threads: none has started
        process = os.fork()
    if process:
        return process
    code = 1
    try:
        code = act()
    finally:
        os._exit(code)


def damaged(good: bytes, kind: str, draw: random.Random) -> bytes:
    """These bytes with one damage: "flip" of a bit, "truncate", "zero", "append" or "rotate"."""
    at = draw.randrange(len(good))
    end = min(at + 64, len(good))
    return {
        "flip": good[:at] + bytes([good[at] ^ 1 << draw.randrange(8)]) + good[at + 1 :],
        "truncate": good[:at],
        "zero": good[:at] + bytes(end - at) + good[end:],
        "append": good + draw.randbytes(100),
        "rotate": good[at:] + good[:at],
    }[kind]


def call(arguments: list[str]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command run in this process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
        out.flush()
        err.flush()
    return code, *(x.buffer.getvalue().decode() for x in (out, err))  # type: ignore[attr-defined]


def write_words(file: Path, num_words: int) -> Path:
    """Writes a text of `num_words` random words, the same in every call."""
    draw = random.Random(0)
    words = (draw.choice(_WORDS.split()) for _ in range(num_words))
    file.write_text(" ".join(words), encoding="utf-8")
    return file


def read_series(workdir: Path) -> dict[int, tuple[str, ...]]:
    """Step -> losses in hexadecimal, without a last line that a killed process left torn."""
    metrics = Workdir(workdir).metrics
    if not metrics.exists():
        return {}
    whole, _, _ = metrics.read_text(encoding="utf-8").rpartition("\n")
    records = [json.loads(line) for line in whole.splitlines()]
    return {r["step"]: _losses(r) for r in records}


def _losses(record: dict[str, Any]) -> tuple[str, ...]:
    names = ("train_loss", "grad_norm", "val_loss")
    return tuple(float(record[name]).hex() for name in names if name in record)


def verdicts(workdir: Path) -> list[tuple[int, str]]:
    """(step, problem or "") of every checkpoint, as `charjax verify` reports them."""
    with Checkpoints(Workdir(workdir).checkpoints) as saved:
        return saved.verify()


def sound_steps(workdir: Path) -> list[int]:
    """The steps whose checkpoints verify."""
    return [step for step, problem in verdicts(workdir) if not problem]


def leaf_digests(workdir: Path, step: int) -> dict[str, str]:
    """Leaf path -> SHA-256 of a checkpoint's parameters, optimizer state, averages and carry."""
    file = Workdir(workdir).checkpoints / str(step) / "meta" / "record.json"
    leaves = json.loads(file.read_bytes())["leaves"]
    return {path: leaf["sha256"] for path, leaf in leaves.items()}


def wait_until_it_trains(process: subprocess.Popen[str], workdir: Path) -> None:
    """Returns when metrics.jsonl grows or the process has ended.

    A resumed run first truncates the records after its checkpoint, so the file may shrink before.
    """
    metrics = Workdir(workdir).metrics
    least = math.inf
    while process.poll() is None:
        size = metrics.stat().st_size if metrics.exists() else 0
        if size > least:
            return
        least = min(size, least)
        time.sleep(0.002)
