"""The grimm tutorial here and in Keras, from the same weights and over the same batches.

python -m benchmarks.tutorial_parity

KERAS_PYTHON names an interpreter with Keras and TensorFlow, where they live in an environment
of their own. Writes `results/tutorial_parity.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import machine
from benchmarks.tutorial_timing import ROOT, prepared
from charjax.data.batches import Batch
from charjax.train.optimizer import make_optimizer
from charjax.train.step import init_state, make_step

STEPS = 164  # two epochs
_LAST = 82


def ours(folder: Path) -> tuple[list[float], Path]:
    """Trains, and writes the first weights and the batches to a file."""
    config, text = prepared("grimm")
    optimizer = make_optimizer(config.optim, STEPS)
    state = init_state(config, len(text.vocab), optimizer)
    step = jax.jit(make_step(config, len(text.vocab), optimizer))
    params: Any = jax.tree.map(np.asarray, state.params)
    layer = params["layer_0"]
    # Whole batches only: Keras would count the rows that a partial one lacks.
    whole = [i for i in range(2 * STEPS) if (i + 1) % text.batches.steps_per_epoch][:STEPS]
    batches = [text.batches(i) for i in whole]
    stacked = Batch(*map(np.stack, zip(*batches, strict=True)))
    file = folder / "given.npz"
    np.savez(
        file,
        embedding=params["embedding"],
        kernel=layer["kernel"],
        recurrent_kernel=layer["recurrent"]["kernel"],
        bias=layer["bias"],
        output_kernel=params["output_kernel"],
        output_bias=params["output_bias"],
        inputs=stacked.inputs,
        targets=stacked.targets,
    )
    losses = []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    return losses, file


def main() -> None:
    """Writes the losses, and how far they are apart."""
    python = os.environ.get("KERAS_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        losses, file = ours(Path(folder))
        done = subprocess.run(
            [python, "-m", "benchmarks.peers.keras_parity", str(file)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    theirs = json.loads(done.stdout.splitlines()[-1])
    curves = {"charjax": losses, "keras": theirs["embedding"], "keras_one_hot": theirs["one_hot"]}
    means = {name: float(np.mean(curve[-_LAST:])) for name, curve in curves.items()}
    apart = np.abs(np.array(theirs["one_hot"]) / np.array(losses) - 1)
    print(
        machine.write(
            "tutorial_parity",
            {
                "config": "configs/tutorials/grimm.py",
                "peer": theirs["versions"],
                "steps": STEPS,
                "mean_loss_of_the_last_82_steps": means,
                "largest_relative_difference_to_one_hot": float(apart.max()),
                "losses": {
                    name: [round(loss, 6) for loss in curve] for name, curve in curves.items()
                },
            },
        )
    )


if __name__ == "__main__":
    main()
