"""Everything worth knowing of one GPU, the most valuable first, in a few minutes.

    python -m benchmarks.gpu --minutes=6 --out=FOLDER
    python -m benchmarks.gpu --small --device=cpu --out=FOLDER

Needs jax, torch and charjax's dependencies, and neither a network nor charjax installed. Each part
runs in a process of its own with a time limit, and writes its result file in FOLDER after every
group, so that a command that is cut off loses one group; --only=end_to_end measures it again.
FOLDER/log.txt has what the parts print. Whole runs read tiny Shakespeare from $CHARJAX_DATA_DIR,
else the text that comes with Python. At the end it prints how each part ended, and the goals of
docs/performance.md; the exit code is 1 if a part failed, or had no time left.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import ROOT, parser, progress
from benchmarks.performance import page
from benchmarks.performance.goals import GPU


class Part(NamedTuple):
    """A part of the measurements.

    Attributes:
      file: the name of its result file.
      limit_s: time limit on a GPU in seconds.
      command: the arguments to Python.
      in_turns: whether it has the flags of `benchmarks.common.measure`.
    """

    file: str
    limit_s: float
    command: tuple[str, ...]
    in_turns: bool = True

    @property
    def name(self) -> str:
        """What it measures, with its flags."""
        return " ".join((self.file, *self.command[2:]))


def _part(name: str, limit_s: float, *flags: str) -> Part:
    return Part(name, limit_s, ("-m", f"benchmarks.performance.{name}", *flags))


_STEP = ("train_step", 75, "--keras_python=")
_BATCHES = ("--batches", "128", "256")  # the persistent kernels with several batch tiles
_TIMES_SLOWER = {"gpu": 1, "cpu": 10}  # so much longer may a part take

PARTS = (
    _part("sample", 90, "--cells=gru"),
    *(_part("persistent", 100, f"--cells={cell}") for cell in ("gru", "lstm")),
    *(_part(*_STEP, f"--cells={cell}") for cell in ("gru", "lstm")),
    *(_part(*_STEP, "--cells=gru", size) for size in ("--batch=256", "--layers=2")),
    _part("runs", 60)._replace(in_turns=False),
    _part("end_to_end", 120),
    *(_part("persistent", 200, f"--cells={cell}", *_BATCHES) for cell in ("gru", "lstm")),
    _part("sweep", 150, "--quick"),
)


def run_all(parts: Iterable[Part], folder: Path, args: argparse.Namespace) -> dict[str, str]:
    """Runs parts one after another in `args.minutes`; returns how each of them ended."""
    end, ended = time.monotonic() + 60 * args.minutes, {}
    flags = [f"--device={args.device}", *["--small"] * args.small]
    turns = [f"--rounds={args.rounds}", f"--turn_s={args.turn_s}"]
    for part in parts:
        name, began = part.name, time.monotonic()
        progress(name)
        out = folder / f"{part.file}_{args.device}.json"
        limit_s = min(_TIMES_SLOWER[args.device] * part.limit_s, end - began)
        command = [*part.command, *flags, *turns * part.in_turns, f"--out={out}"]
        ended[name] = _run(command, folder / "log.txt", limit_s)
        if ended[name] == "ok" and not out.exists():
            ended[name] = f"ok, without a result: {_last_line(folder / 'log.txt')}"
        progress(f"  {ended[name]} ({time.monotonic() - began:.0f} s)")
    return ended


def _run(command: Sequence[str], log: Path, limit_s: float) -> str:
    """Runs Python with a command, and ends it with all processes that it started."""
    if limit_s <= 0:
        return "no time left"
    env = {"BENCHMARK_OFFLINE": "python_docs"} | os.environ
    with log.open("a") as lines:
        output = {"stdout": lines, "stderr": lines}
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=env, start_new_session=True, **output
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"killed after {limit_s:.3g} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "ok" if code == 0 else f"exit code {code}: {_last_line(log)}"


def _last_line(file: Path) -> str:
    return "".join(file.read_text(encoding="utf-8").splitlines()[-1:])


def main() -> None:
    """Writes the result files and prints the table."""
    flags = parser(__doc__, is_folder=True)
    flags.set_defaults(device="gpu", rounds=3, out=Path("gpu_results"))
    flags.add_argument("--minutes", type=float, default=6.0, help="for everything; default 6")
    flags.add_argument("--only", default="", help="the parts with this in their names")
    args = flags.parse_args()
    if not (parts := [part for part in PARTS if args.only in part.name]):
        flags.error(f"--only={args.only}: is in no name of {[part.name for part in PARTS]}")
    folder = args.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    ended = run_all(parts, folder, args)
    results = {
        (name, "gpu"): json.loads(file.read_text(encoding="utf-8"))
        for name in page.BENCHMARKS
        if (file := folder / f"{name}_{args.device}.json").exists()
    }
    print("\n".join(f"{part}: {end}" for part, end in ended.items()))
    print(page.goals_table(results, GPU))
    sys.exit(int(not all(end.startswith("ok") for end in ended.values())))


if __name__ == "__main__":
    main()
