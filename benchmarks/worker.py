"""One peer in a process of its own, which works only when it is asked to.

So the thread pools of torch, XLA and TensorFlow never run at the same time, and
nobody's flags or memory reach anybody else. Run by `benchmarks.common`:

    python -m benchmarks.worker benchmarks.peers.with_torch:train_step '{"dtype": "float32", ...}'

A line of JSON comes out when the peer is built, compiled and warm, and one for
every line that asks for some units of work.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """Work that can be repeated.

    Attributes:
      chars: characters a unit.
      run: does so many units and waits for their end; what it returns is noted.
      about: what identifies the work: versions, parameters, device.
      device_bytes: peak memory of an accelerator so far; None: host memory counts.
    """

    chars: int
    run: Callable[[int], dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)
    device_bytes: Callable[[], int] | None = None


def check_gpu(library: str, *, found: bool) -> None:
    """Raises RuntimeError where a GPU is to be measured and a library would take the CPU.

    For JAX `JAX_PLATFORMS` alone does so.
    """
    if "cuda" in os.environ.get("JAX_PLATFORMS", "") and not found:
        raise RuntimeError(f"{library} finds no GPU")


def main() -> None:
    """Builds the task that the arguments name, then serves standard input."""
    # Whatever a library prints goes to stderr; the answers have standard output alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    module, _, factory = sys.argv[1].partition(":")
    try:
        task: Task = getattr(importlib.import_module(module), factory)(**json.loads(sys.argv[2]))
        task.run(1)
    except (ImportError, NotImplementedError) as error:
        answer(unavailable=str(error))
        return
    answer(chars=task.chars, about=task.about)
    for line in sys.stdin:
        answer(**timed(task, json.loads(line)["units"]))


def timed(task: Task, units: int) -> dict[str, Any]:
    """Some units: wall and CPU seconds, peak memory, and what the task notes."""
    wall, cpu = time.perf_counter(), time.process_time()
    notes = task.run(units)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = (
        task.device_bytes()
        if task.device_bytes
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {"seconds": wall, "cpu_seconds": cpu, "peak_bytes": peak, "notes": notes}


if __name__ == "__main__":
    main()
