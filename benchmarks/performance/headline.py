"""Trains a shipped config as a user would and writes its figures for README.

python -m benchmarks.performance.headline shakespeare
python -m benchmarks.performance.headline quickstart
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import result_files
from benchmarks.common import ROOT
from charjax.train.metrics import read_metrics
from charjax.workdir import Workdir

NO_OTHER_TEXT = "--config.data.offline="  # no substitute text: its figures would look the same
PROMPTS = {"shakespeare": "ROMEO:", "quickstart": "The "}


def run(*command: str, python: str = sys.executable) -> str:
    """Runs a Python command and returns its standard output; exits with its code if it fails."""
    done = subprocess.run([python, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def answer(*command: str, python: str = sys.executable) -> Any:
    """Runs a Python command and returns the JSON in the last line of its standard output."""
    return json.loads(run(*command, python=python).splitlines()[-1])


def launch(config: str, workdir: Path, *flags: str) -> tuple[Any, list[dict[str, Any]]]:
    """Trains, or resumes the run in `workdir`; returns its run.json and its metrics' records."""
    run("launch.py", f"--config={config}", f"--workdir={workdir}", *flags)
    files = Workdir(workdir)
    return json.loads(files.run_json.read_text(encoding="utf-8")), read_metrics(files.metrics)


def best(records: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The record with the lowest validation loss; None without validation."""
    validated = (record for record in records if "val_loss" in record)
    return min(validated, key=lambda record: record["val_loss"], default=None)


def train(name: str, workdir: Path, *flags: str) -> dict[str, Any]:
    """Trains a shipped config, with more flags; returns its times and losses."""
    started = time.monotonic()
    saved, records = launch(name, workdir, *flags)
    wall_s = time.monotonic() - started
    speeds = sorted(r["chars_per_second"] for r in records)
    return {
        "config": f"configs/{name}.py",
        "run": saved["config"],
        **{key: saved[key] for key in ("recurrence", "device")},
        "corpus": saved["corpus"]["name"],
        "wall_s": round(wall_s, 1),
        "training_s": records[-1]["time_s"],
        "steps": records[-1]["step"],
        "chars_per_second": speeds[len(speeds) // 2],
        "best": best(records),
        "last": records[-1],
    }


def measure(name: str, workdir: Path) -> dict[str, Any]:
    """Trains, samples and describes the model."""
    flags = (f"--workdir={workdir}", f"--prompt={PROMPTS[name]}", "--num_chars=400", "--seed=1")
    return train(name, workdir, NO_OTHER_TEXT) | {
        "info": answer("-m", "charjax", "info", f"--workdir={workdir}"),
        "sample": run("-m", "charjax", "sample", *flags, "--temperature=0.7"),
    }


def main() -> None:
    """Writes `results/<name>.json` and `docs/img/<name>.png`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(PROMPTS))
    parser.add_argument("--workdir", type=Path, help="keep the run here; default: discarded")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        workdir = args.workdir or Path(scratch) / "run"
        figures = measure(args.name, workdir)
        shutil.copy(workdir / "curves.png", ROOT / "docs" / "img" / f"{args.name}.png")
    print(result_files.write(args.name, figures), json.dumps(figures["best"]))


if __name__ == "__main__":
    main()
