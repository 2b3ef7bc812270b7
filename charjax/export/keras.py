"""Export as weights of a Keras 3 model, and a script that builds the model."""

from __future__ import annotations

import io

import numpy as np

from charjax.config import ModelConfig
from charjax.export.foreign import embedding, foreign_layers
from charjax.export.weights import import_extra, token_files
from charjax.inference.load import TrainedModel
from charjax.runtime.safetensors import Arrays
from charjax.types import PyTree

# Order of gates: Keras' GRU has update, reset, candidate; its LSTM has charjax's order.
GATES = {"gru": (1, 0, 2), "lstm": (0, 1, 2, 3), "rnn": (0,)}
_CLASSES = {"gru": "GRU", "lstm": "LSTM", "rnn": "SimpleRNN"}
_NAMES = {"gru": "gru", "lstm": "lstm", "rnn": "simple_rnn"}


def keras_files(trained: TrainedModel) -> dict[str, bytes]:
    """`model.weights.h5`, `model.py`, the model that loads it, and the files of tokens.

    Raises:
      InputError: the package h5py is not installed.
    """
    config = trained.config.model
    h5py = import_extra("h5py")
    arrays = keras_weights(config, trained.params)
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for path, array in arrays.items():
            file[path] = array
    vocab, embed = arrays["layers/embedding/vars/0"].shape
    layer = f"keras.layers.{_CLASSES[config.cell]}({config.hidden}, return_sequences=True)"
    model = _MODEL.format(
        vocab=vocab, embed=embed, layers="\n".join([f"            {layer},"] * config.layers)
    )
    files = {"model.weights.h5": content.getvalue(), "model.py": model.encode()}
    return files | token_files(trained.vocab)


def keras_weights(config: ModelConfig, params: PyTree) -> Arrays:
    """The variables of Sequential([Embedding, GRU, LSTM or SimpleRNN, ..., Dense]), by path."""
    arrays = {"layers/embedding/vars/0": embedding(config, params)}
    for i, layer in enumerate(foreign_layers(config, params, GATES)):
        path = f"layers/{_NAMES[config.cell]}{f'_{i}' if i else ''}/cell/vars"
        # A GRU has the biases of the input gates and of the hidden gates.
        bias = np.stack([layer.bias, layer.hidden_bias]) if config.cell == "gru" else layer.bias
        arrays |= {
            f"{path}/0": layer.kernel,
            f"{path}/1": layer.recurrent_kernel,
            f"{path}/2": bias,
        }
    arrays["layers/dense/vars/0"] = np.asarray(params["output_kernel"])
    arrays["layers/dense/vars/1"] = np.asarray(params["output_bias"])
    return arrays


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
