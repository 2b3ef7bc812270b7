"""Keras on whichever backend KERAS_BACKEND names: `GRU` and `LSTM`, batch by batch."""

from __future__ import annotations

from typing import Any

import keras

from benchmarks.worker import Task, check_gpu
from benchmarks.workload import Shape, batch


def train_step(shape: dict[str, Any], dtype: str) -> Task:
    """`Model.train_on_batch`, which at these sizes costs less around the step than `fit`.

    Args:
      shape: of the model and its batch.
      dtype: float32, or another one that Keras mixes with it.
    """
    _check_device()
    wanted = Shape(**shape)
    keras.config.set_dtype_policy(dtype if dtype == "float32" else f"mixed_{dtype}")
    layer = {"gru": keras.layers.GRU, "lstm": keras.layers.LSTM}[wanted.cell]
    model = keras.Sequential(
        [
            keras.Input((wanted.length,), dtype="int32"),
            keras.layers.Embedding(wanted.vocab, wanted.embed),
            *(layer(wanted.hidden, return_sequences=True) for _ in range(wanted.layers)),
            keras.layers.Dense(wanted.vocab, dtype="float32"),  # as its guide wants logits
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    inputs, targets = (x[0] for x in batch(wanted))

    def run(units: int) -> dict[str, Any]:
        for _ in range(units):
            loss = model.train_on_batch(inputs, targets)
        return {"loss": float(loss)}

    about = {
        "parameters": model.count_params(),
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
    }
    return Task(wanted.chars, run, about)


def _check_device() -> None:
    """`check_gpu` of the backend."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow

        check_gpu(backend, found=bool(tensorflow.config.list_physical_devices("GPU")))
    elif backend == "torch":
        import torch

        check_gpu(backend, found=torch.cuda.is_available())
