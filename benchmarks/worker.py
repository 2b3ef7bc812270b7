"""The process of one peer, which works only when it is asked to.

So the thread pools of torch, XLA and TensorFlow never compete, and no flag or memory use of one
peer affects another. Started by `benchmarks.common`:

    python -m benchmarks.worker benchmarks.peers.with_torch:train_step '{"dtype": "float32", ...}'

It prints a line of JSON when the peer is built, compiled and warm, and one for every request
that it reads from standard input.
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
      chars: characters per unit.
      run: does a number of units, waits for their end, and returns notes.
      about: versions, number of parameters, device.
      device_bytes: returns the peak memory of the accelerator; None: measure host memory.
    """

    chars: int
    run: Callable[[int], dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)
    device_bytes: Callable[[], int] | None = None


def check_gpu(library: str, *, found: bool) -> None:
    """Raises RuntimeError if a GPU is to be measured and `library` found none.

    For JAX, `JAX_PLATFORMS` is enough.
    """
    if "cuda" in os.environ.get("JAX_PLATFORMS", "") and not found:
        raise RuntimeError(f"{library} finds no GPU")


def main() -> None:
    """Builds the task that the arguments name, then serves requests."""
    # Libraries may print: their output goes to stderr, only answers to the old stdout.
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
    """Runs some units; returns the wall seconds of one, peak memory and the notes."""
    start = time.perf_counter()
    notes = task.run(units)
    seconds = (time.perf_counter() - start) / units
    host_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = task.device_bytes() if task.device_bytes else host_bytes
    return {"seconds": seconds, "peak_bytes": peak, "notes": notes}


if __name__ == "__main__":
    main()
