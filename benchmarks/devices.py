"""The promises about devices and processes, each measured on this machine's host devices.

python -m benchmarks.devices agree      the same losses and samples on any of them
python -m benchmarks.devices moved      a run that moves between them at checkpoints
python -m benchmarks.devices killed     kill -9 of one of two processes, then a restart
python -m benchmarks.devices starts     one hundred starts, none of which may hang
python -m benchmarks.devices dispatch   what a dispatch costs at eight devices
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.launches import Shape, apart, environment, losses, sample, start, train

FLAGS = (
    "--config=configs/quickstart.py",
    "--config.model.dropout=0.3",
    "--config.train.log_every=1",
    "--config.train.eval_every=100",
    "--config.sample.num_chars=0",
)
ONE = Shape(1, 1)
OTHERS = {
    "jit": (Shape(1, 2), Shape(1, 4), Shape(1, 8), Shape(2, 2)),
    "pmap": (ONE, Shape(1, 8), Shape(2, 2)),
}
# A schedule would bind the run to its last step, which changes here.
ENDLESS = ("--config.optim.schedule=constant", "--config.optim.warmup=0.0")
LIMITS = {"jit": 1e-6, "pmap": 1e-5}


def all_max(scratch: Path) -> dict[str, Any]:
    """100 steps with dropout: losses, and a sample of the checkpoint, against one device."""
    flags = (*FLAGS, "--config.train.max_steps=100")
    train(ONE, scratch / "one", flags)
    wanted, text = losses(scratch / "one"), sample(scratch / "one")
    rows = []
    for backend, shapes in OTHERS.items():
        for shape in shapes:
            workdir = scratch / f"{backend} {shape}"
            train(shape, workdir, (*flags, f"--config.parallel.backend={backend}"))
            difference = apart(wanted, losses(workdir))
            rows.append(
                {
                    "backend": backend,
                    "processes_x_devices": str(shape),
                    "largest_relative_difference": difference,
                    "limit": LIMITS[backend],
                    "kept": difference <= LIMITS[backend],
                    "sample_equal": sample(workdir) == text,
                }
            )
    return {"steps": len(wanted), "last_loss": wanted[100], "rows": rows}


def moved(scratch: Path) -> dict[str, Any]:
    """20 steps each on 8 devices, 1, 2 processes and 8 by pmap, against 80 steps on one."""
    flags = (*FLAGS, *ENDLESS, "--config.train.eval_every=20")
    stations = ((Shape(1, 8), "jit"), (ONE, "jit"), (Shape(2, 2), "jit"), (Shape(1, 8), "pmap"))
    for i, (shape, backend) in enumerate(stations, start=1):
        stop = (f"--config.train.max_steps={20 * i}", f"--config.parallel.backend={backend}")
        train(shape, scratch / "moves", (*flags, *stop))
    train(ONE, scratch / "stays", (*flags, "--config.train.max_steps=80"))
    difference = apart(losses(scratch / "stays"), losses(scratch / "moves"))
    row = {
        "steps": 80,
        "processes_x_devices": ", ".join(f"{shape} {backend}" for shape, backend in stations),
        "largest_relative_difference": difference,
        "limit": 1e-5,
        "kept": difference <= 1e-5,
    }
    return {"rows": [row]}


def killed(scratch: Path) -> dict[str, Any]:
    """Kills either process of two; the survivor's end, and where a restart goes on."""
    flags = (
        *FLAGS,
        *ENDLESS,
        "--config.train.checkpoint_every=10",
        "--config.train.max_steps=5000",
    )
    rows = []
    for victim in (0, 1):
        workdir = scratch / f"victim {victim}"
        running = start(Shape(2, 2), workdir, flags)
        while not (workdir / "checkpoints" / "20").is_dir():
            time.sleep(0.1)
        running[victim].kill()
        began = time.monotonic()
        said = running[1 - victim].communicate(timeout=100)[1]
        seconds = time.monotonic() - began
        running[victim].communicate()
        steps = [p.name for p in (workdir / "checkpoints").iterdir()]
        saved = max(int(step) for step in steps if step.isdigit())
        train(Shape(2, 2), workdir, (*flags, f"--config.train.max_steps={saved + 10}"))
        rows.append(
            {
                "victim": victim,
                "survivor_seconds": round(seconds, 1),
                "survivor_exit_code": running[1 - victim].returncode,
                "survivor_lines": len(said.splitlines()),
                "newest_checkpoint": saved,
                "restarted_to": max(losses(workdir)),
            }
        )
    return {"limit_s": 60, "rows": rows}


def starts(scratch: Path) -> dict[str, Any]:
    """One hundred runs on 8 host devices, a dispatch a step, so that steps queue up."""
    flags = (
        "--config=configs/quickstart.py",
        "--config.model.hidden=32",
        "--config.data.split=(1.0,0.0,0.0)",
        "--config.train.max_steps=20",
        "--config.train.log_every=20",
        "--config.train.steps_per_dispatch=1",
        "--config.sample.num_chars=0",
    )
    seconds = []
    for i in range(100):
        began = time.monotonic()
        backend = f"--config.parallel.backend={('jit', 'pmap')[i % 2]}"
        train(Shape(1, 8), scratch / str(i), (*flags, backend), timeout_s=120)
        seconds.append(time.monotonic() - began)
    row = {"starts": len(seconds), "devices": 8, "hung": 0, "longest_s": round(max(seconds), 1)}
    return {"rows": [row]}


def dispatch(scratch: Path) -> dict[str, Any]:
    """Time a step of a model too small to matter, one step a dispatch and ten."""
    rows = []
    for devices in (1, 8):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.dispatch"],
            env=environment(devices) | {"NPROC": "16"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        rows += [json.loads(line) for line in done.stdout.splitlines()]
    return {"rows": rows}


def main() -> None:
    """Runs one proof and writes `results/devices_<name>.json`."""
    proofs: dict[str, Callable[[Path], dict[str, Any]]] = {
        proof.__name__: proof for proof in (all_max, moved, killed, starts, dispatch)
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("proof", choices=proofs)
    parser.add_argument("--scratch", type=Path, help="keep the runs here, and go on with them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as discarded:
        figures = proofs[args.proof](args.scratch or Path(discarded))
    print(machine.write(f"devices_{args.proof}", figures))


if __name__ == "__main__":
    main()
