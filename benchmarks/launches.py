"""Runs of `launch.py` on any number of host devices and processes, for proofs to compare."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Shape:
    """How many processes, and how many host devices each has."""

    processes: int
    devices: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.devices}"


def start(shape: Shape, workdir: Path, flags: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Starts the processes of one run, standard error kept and standard output discarded."""
    command = [sys.executable, "launch.py", f"--workdir={workdir}", *flags]
    place: list[list[str]] = [[]]
    if shape.processes > 1:
        shared = [f"--coordinator=127.0.0.1:{_free_port()}", f"--num_processes={shape.processes}"]
        place = [[*shared, f"--process_id={i}"] for i in range(shape.processes)]
    return [
        subprocess.Popen(
            [*command, *own],
            cwd=ROOT,
            env=environment(shape.devices),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in place
    ]


def train(shape: Shape, workdir: Path, flags: Sequence[str], timeout_s: float = 1200) -> None:
    """Trains to the end.

    Raises:
      RuntimeError: a process failed; it has what that process said.
    """
    running = start(shape, workdir, flags)
    errors = [process.communicate(timeout=timeout_s)[1] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"{shape}: {[p.returncode for p in running]}: {errors}")


def sample(workdir: Path, num_chars: int = 300) -> bytes:
    """What `charjax sample` writes on one device, given the newest checkpoint."""
    flags = (f"--workdir={workdir}", "--checkpoint=newest", "--prompt=The ", "--seed=1")
    command = [sys.executable, "-m", "charjax", "sample", *flags, f"--num_chars={num_chars}"]
    return subprocess.run(
        command, cwd=ROOT, env=environment(1), stdout=subprocess.PIPE, check=True
    ).stdout


def losses(workdir: Path) -> dict[int, float]:
    """Step -> the training loss recorded at it, nats per character."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = map(json.loads, lines)
    return {r["step"]: r["train_loss"] for r in records if "train_loss" in r}


def apart(one: dict[int, float], other: dict[int, float]) -> float:
    """The largest relative difference of two runs' losses, which must be of the same steps."""
    if one.keys() != other.keys():
        raise RuntimeError(f"other steps: {len(one)} and {len(other)}")
    return max(abs(one[step] - other[step]) / abs(one[step]) for step in one)


def environment(devices: int) -> dict[str, str]:
    """Of a process that has so many host devices."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
