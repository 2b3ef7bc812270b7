"""Export as weights of a Keras 3 model, and a script that builds the model."""

from __future__ import annotations

import io

from charjax.export.weights import import_extra, keras_weights
from charjax.inference.load import TrainedModel

_RNN = {"gru": "GRU", "lstm": "LSTM", "rnn": "SimpleRNN"}


def keras_files(trained: TrainedModel) -> dict[str, bytes]:
    """`model.weights.h5` and `model.py`, the model that loads it.

    Raises:
      InputError: the package h5py is not installed.
    """
    config = trained.config.model
    h5py = import_extra("h5py", extra="export")
    arrays = keras_weights(config, trained.params)
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for path, array in arrays.items():
            file[path] = array
    vocab, embed = arrays["layers/embedding/vars/0"].shape
    layer = f"keras.layers.{_RNN[config.cell]}({config.hidden}, return_sequences=True)"
    model = _MODEL.format(
        vocab=vocab, embed=embed, layers="\n".join([f"            {layer},"] * config.layers)
    )
    return {"model.weights.h5": content.getvalue(), "model.py": model.encode()}


_MODEL = '''\
"""A character model of charjax as a Keras model: `model = load()`, tokens to logits."""

from pathlib import Path

import keras


def load():
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding({vocab}, {embed}),
{layers}
            keras.layers.Dense({vocab}),
        ]
    )
    model.load_weights(Path(__file__).with_name("model.weights.h5"))
    return model
'''
