"""Keras on whichever backend KERAS_BACKEND names: `GRU` and `LSTM` layers under `fit`."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np

from benchmarks.shape import Shape, batch
from benchmarks.worker import Task


def train_step(shape: dict[str, Any]) -> Task:
    """`Model.fit` over as many batches as there are units."""
    wanted = Shape(**shape)
    layer = {"gru": keras.layers.GRU, "lstm": keras.layers.LSTM}[wanted.cell]
    model = keras.Sequential(
        [
            keras.Input((wanted.length,), dtype="int32"),
            keras.layers.Embedding(wanted.vocab, wanted.embed),
            *(layer(wanted.hidden, return_sequences=True) for _ in range(wanted.layers)),
            keras.layers.Dense(wanted.vocab),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    inputs, targets = (x[0] for x in batch(wanted))

    def run(units: int) -> dict[str, Any]:
        x, y = (np.tile(part, (units, 1)) for part in (inputs, targets))
        history = model.fit(x, y, batch_size=wanted.batch, shuffle=False, verbose=0)
        return {"loss": float(history.history["loss"][-1])}

    about = {
        "parameters": model.count_params(),
        "keras": keras.__version__,
        "backend": os.environ["KERAS_BACKEND"],
    }
    return Task(wanted.chars, run, about)
