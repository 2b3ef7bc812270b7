"""Equality and recovery over devices and processes, measured on forced CPU devices.

python -m tests.faults.devices agree    equal losses and samples on any number of them
python -m tests.faults.devices moved    a run that changes devices at its checkpoints
python -m tests.faults.devices killed   kill -9 of one of two processes, then a restart
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.environment import provenance, with_devices

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FLAGS = (
    "--config=configs/quickstart.py",
    "--config.model.dropout=0.3",
    "--config.train.log_every=1",
    "--config.train.eval_every=100",
    "--config.sample.num_chars=0",
)
# A schedule depends on the last step, which changes here.
CONSTANT = ("--config.optim.schedule=constant", "--config.optim.warmup=0.0")
# backend -> largest relative difference of a loss to that of one device
LIMITS = {"jit": 1e-6, "pmap": 1e-5}


@dataclass(frozen=True)
class Topology:
    """The number of processes, and of host devices in each."""

    processes: int
    devices: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.devices}"


ONE = Topology(1, 1)
OTHERS = {
    "jit": (Topology(1, 2), Topology(1, 4), Topology(1, 8), Topology(2, 2)),
    "pmap": (ONE, Topology(1, 8), Topology(2, 2)),
}


def start(topology: Topology, workdir: Path, flags: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Starts the processes of one run; their standard error is a pipe."""
    command = [sys.executable, "launch.py", f"--workdir={workdir}", *flags]
    places: list[list[str]] = [[]]
    if topology.processes > 1:
        job = [f"--coordinator=127.0.0.1:{_free_port()}", f"--num_processes={topology.processes}"]
        places = [[*job, f"--process_id={i}"] for i in range(topology.processes)]
    return [
        subprocess.Popen(
            [*command, *place],
            cwd=ROOT,
            env=with_devices(topology.devices),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in places
    ]


def train(topology: Topology, workdir: Path, flags: Sequence[str]) -> None:
    """Trains to the end.

    Raises:
      RuntimeError: a process failed; the message has its standard error.
    """
    running = start(topology, workdir, flags)
    errors = [process.communicate(timeout=1200)[1] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"{topology}: {[p.returncode for p in running]}: {errors}")


def sample(workdir: Path) -> bytes:
    """Output of `charjax sample` for the newest checkpoint, on one device."""
    flags = (f"--workdir={workdir}", "--checkpoint=newest", "--prompt=The ", "--seed=1")
    command = [sys.executable, "-m", "charjax", "sample", *flags, "--num_chars=300"]
    return subprocess.run(
        command, cwd=ROOT, env=with_devices(1), stdout=subprocess.PIPE, check=True
    ).stdout


def losses(workdir: Path) -> dict[int, float]:
    """Step -> recorded training loss, nats per character."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = map(json.loads, lines)
    return {r["step"]: r["train_loss"] for r in records if "train_loss" in r}


def largest_difference(one: dict[int, float], other: dict[int, float]) -> float:
    """Largest relative difference of two runs' losses, which must be of the same steps."""
    if one.keys() != other.keys():
        raise RuntimeError(f"different steps: {len(one)} and {len(other)}")
    return max(abs(one[step] - other[step]) / abs(one[step]) for step in one)


def agree(scratch: Path) -> dict[str, Any]:
    """100 steps with dropout: losses, and a sample of the checkpoint, compared with one device."""
    flags = (*FLAGS, "--config.train.max_steps=100")
    train(ONE, scratch / "one", flags)
    expected, text = losses(scratch / "one"), sample(scratch / "one")
    rows = []
    for backend, topologies in OTHERS.items():
        for topology in topologies:
            workdir = scratch / f"{backend} {topology}"
            train(topology, workdir, (*flags, f"--config.parallel.backend={backend}"))
            difference = largest_difference(expected, losses(workdir))
            rows.append(
                {
                    "backend": backend,
                    "processes_x_devices": str(topology),
                    "largest_relative_difference": difference,
                    "limit": LIMITS[backend],
                    "within_limit": difference <= LIMITS[backend],
                    "sample_equal": sample(workdir) == text,
                }
            )
    return {"steps": len(expected), "last_loss": expected[100], "rows": rows}


def moved(scratch: Path) -> dict[str, Any]:
    """20 steps each on 8 devices, on 1, in 2 processes and on 8 by pmap; 80 steps on 1."""
    flags = (*FLAGS, *CONSTANT, "--config.train.eval_every=20")
    eight, two = Topology(1, 8), Topology(2, 2)
    legs = ((eight, "jit"), (ONE, "jit"), (two, "jit"), (eight, "pmap"))
    for i, (topology, backend) in enumerate(legs, start=1):
        stop = (f"--config.train.max_steps={20 * i}", f"--config.parallel.backend={backend}")
        train(topology, scratch / "moves", (*flags, *stop))
    train(ONE, scratch / "stays", (*flags, "--config.train.max_steps=80"))
    difference = largest_difference(losses(scratch / "stays"), losses(scratch / "moves"))
    row = {
        "steps": 80,
        "processes_x_devices": ", ".join(f"{topology} {backend}" for topology, backend in legs),
        "largest_relative_difference": difference,
        "limit": 1e-5,
        "within_limit": difference <= 1e-5,
    }
    return {"rows": [row]}


def killed(scratch: Path) -> dict[str, Any]:
    """Kills either process of two; the survivor's exit, and the step of a restart."""
    intervals = ("--config.train.checkpoint_every=10", "--config.train.max_steps=5000")
    flags = (*FLAGS, *CONSTANT, *intervals)
    rows = []
    for victim in (0, 1):
        workdir = scratch / f"victim {victim}"
        running = start(Topology(2, 2), workdir, flags)
        while not (workdir / "checkpoints" / "20").is_dir():
            time.sleep(0.1)
        running[victim].kill()
        began = time.monotonic()
        errors = running[1 - victim].communicate(timeout=100)[1]
        seconds = time.monotonic() - began
        running[victim].communicate()
        steps = [p.name for p in (workdir / "checkpoints").iterdir()]
        saved = max(int(step) for step in steps if step.isdigit())
        train(Topology(2, 2), workdir, (*flags, f"--config.train.max_steps={saved + 10}"))
        rows.append(
            {
                "victim": victim,
                "survivor_seconds": round(seconds, 1),
                "survivor_exit_code": running[1 - victim].returncode,
                "survivor_lines": len(errors.splitlines()),
                "newest_checkpoint": saved,
                "restarted_to": max(losses(workdir)),
            }
        )
    return {"limit_s": 60, "rows": rows}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def main() -> None:
    """Writes `results/devices_<name>.json`."""
    measurements = {measure.__name__: measure for measure in (agree, moved, killed)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=measurements)
    parser.add_argument("--scratch", type=Path, help="keep the runs here, and resume them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as discarded:
        figures = measurements[args.name](args.scratch or Path(discarded))
    path = RESULTS / f"devices_{args.name}.json"
    result = provenance("tests.faults.devices", [args.name]) | figures
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
