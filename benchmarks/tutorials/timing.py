"""Times a training step of each tutorial here and in its own framework, one after the other."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import result_files
from benchmarks.common import ROOT
from benchmarks.performance.headline import answer
from benchmarks.tutorials.published import TUTORIALS

_WARM = 2  # dispatches before the clock starts


def measure(seconds: float) -> Path:
    """Times each system for so many seconds and writes `results/tutorial_timing.json`."""
    load = os.getloadavg()[0]
    timed = {}
    for name in TUTORIALS:
        print(name, file=sys.stderr)
        ours = answer("-m", "benchmarks.tutorials.timing", name, str(seconds))
        theirs = time_theirs(name, seconds)
        both = (("ours_s", ours), ("theirs_s", theirs))
        epoch = {key: round(one["step_s"] * ours["steps_per_epoch"], 3) for key, one in both}
        ratio = round(ours["step_s"] / theirs["step_s"], 3)
        timed[name] = {"epoch": epoch, "ratio": ratio, "ours": ours, "theirs": theirs}
    return result_files.write("tutorial_timing", {"load_before": load, "tutorials": timed})


def time_theirs(name: str, seconds: float) -> dict[str, Any]:
    """Median seconds per step of the tutorial's framework, in its own process, on the same text."""
    python = os.environ.get(f"{TUTORIALS[name].framework.upper()}_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.json"
        text.write_text(json.dumps(documents(name)), encoding="utf-8")
        script = Path(__file__).with_name("frameworks.py")
        return answer(str(script), name, str(text), str(seconds), python=python)


def time_ours(name: str, seconds: float) -> dict[str, Any]:
    """Median seconds per step of the plain config, including batches and transfers."""
    import numpy as np

    from charjax.train.backends import make_backend
    from charjax.train.intervals import make_intervals
    from charjax.train.optimizer import make_optimizer
    from charjax.train.train_state import init_state

    config, text = prepared(name)
    intervals = make_intervals(config.train, text.batches.steps_per_epoch)
    optimizer = make_optimizer(config.optim, intervals.total)
    backend = make_backend(config, len(text.vocab), optimizer)
    state = backend.place(init_state(config, len(text.vocab), optimizer))
    marks, step, pending = [], 0, None
    while len(marks) < _WARM + 3 or marks[-1] - marks[_WARM] < seconds:
        steps = range(step, step + intervals.dispatch)
        state, metrics = backend.run(state, backend.inputs(text.batches, steps))
        # As the training loop does: waits for the dispatch before, not for this one.
        if pending is not None:
            np.asarray(pending.loss)
            marks.append(time.perf_counter())
        pending, step = metrics, step + intervals.dispatch
    laps = [b - a for a, b in itertools.pairwise(marks[_WARM:])]
    return {
        "step_s": statistics.median(laps) / intervals.dispatch,
        "steps": len(laps) * intervals.dispatch,
        "steps_per_epoch": text.batches.steps_per_epoch,
    }


def prepared(name: str) -> tuple[Any, Any]:
    """The plain config of a tutorial, and its text."""
    from charjax.cli.config_flags import load_config
    from charjax.data.dataset import load_dataset

    _, config = load_config([f"--config={ROOT}/configs/tutorials/{name}.py"])
    return config, load_dataset(config)


def documents(name: str) -> list[str]:
    """The documents of a tutorial's text, as charjax reads them."""
    _, text = prepared(name)
    edges = [*text.corpus.document_starts, len(text.corpus.text)]
    return [text.corpus.text[a:b] for a, b in itertools.pairwise(edges)]


if __name__ == "__main__":
    print(json.dumps(time_ours(sys.argv[1], float(sys.argv[2]))))
