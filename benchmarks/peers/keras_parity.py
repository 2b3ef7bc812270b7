"""Keras from given weights over given batches: python -m benchmarks.peers.keras_parity FILE.

FILE is the .npz of `benchmarks.tutorial_parity`. It prints one JSON object: the losses of
every step, with the `Embedding` layer and with a product of one-hot rows in its place.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np


def losses(given: Mapping[str, Any], *, one_hot: bool) -> list[float]:
    """The loss of every step, in the precision and with the optimizer that Keras takes itself."""
    symbols, embed = given["embedding"].shape
    hidden = given["recurrent_kernel"].shape[0]
    first = keras.layers.Dense(embed, use_bias=False) if one_hot else None
    model = keras.Sequential(
        [
            keras.Input((None, symbols) if one_hot else (None,)),
            first or keras.layers.Embedding(symbols, embed),
            keras.layers.LSTM(hidden, return_sequences=True),
            keras.layers.Dense(symbols),
        ]
    )
    model.compile(
        optimizer="adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    names = ("embedding", "kernel", "recurrent_kernel", "bias", "output_kernel", "output_bias")
    model.set_weights([given[name] for name in names])
    found = []
    for inputs, targets in zip(given["inputs"], given["targets"], strict=True):
        model.reset_metrics()  # the loss of this batch alone
        shown = np.eye(symbols, dtype=np.float32)[inputs] if one_hot else inputs
        found.append(float(model.train_on_batch(shown, targets)))
    return found


def main(file: str) -> None:
    """Both ways, from the same weights."""
    with np.load(file) as given:
        arrays = dict(given)
    result = {
        "embedding": losses(arrays, one_hot=False),
        "one_hot": losses(arrays, one_hot=True),
        "versions": {"keras": keras.__version__, "backend": keras.backend.backend()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
