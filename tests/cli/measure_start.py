"""Seconds that the commands take from their start, with a warm cache, on this machine.

    python -m tests.cli.measure_start WORKDIR

WORKDIR holds a run. Prints the median and the least of ten turns; what else runs on the machine
only adds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.environment import existing

TURNS = 10
CHARJAX = (sys.executable, "-m", "charjax")


def seconds_to_end(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def seconds_to_first_step(config: str) -> float:
    """Seconds until a new run reports its first step."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [*CHARJAX, "train", f"--config={config}", f"--workdir={workdir}/run"]
        options = ["--config.train.max_steps=1", "--config.train.log_every=1"]
        started = time.perf_counter()
        pipes: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        with subprocess.Popen([*command, *options], **pipes) as process:
            next(line for line in process.stdout if line.startswith("step 1 "))
            return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=existing, metavar="WORKDIR")
    run = f"--workdir={parser.parse_args().workdir}"
    quickstart = str(Path(__file__).parents[2] / "configs" / "quickstart.py")
    tasks = {
        "import jax": lambda: seconds_to_end(sys.executable, "-c", "import jax"),
        "info": lambda: seconds_to_end(*CHARJAX, "info", run),
        "sample 40": lambda: seconds_to_end(*CHARJAX, "sample", run, "--num_chars=40"),
        "first step": lambda: seconds_to_first_step(quickstart),
    }
    for name, measure in tasks.items():
        turns = [measure() for _ in range(TURNS)]
        times = {"median_s": statistics.median(turns), "best_s": min(turns)}
        print(json.dumps({"task": name, **{key: round(s, 2) for key, s in times.items()}}))


if __name__ == "__main__":
    main()
