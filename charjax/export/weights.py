"""A model's weights by the names and layouts of charjax, torch and Keras."""

from __future__ import annotations

import importlib
from types import ModuleType

import jax
import numpy as np
from jaxtyping import Float

from charjax.config import ModelConfig
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.runtime.keys import Stream
from charjax.types import PyTree

Arrays = dict[str, np.ndarray]


def safetensors(arrays: Arrays, metadata: dict[str, str]) -> bytes:
    """Serializes arrays in the safetensors format.

    Raises:
      InputError: the package safetensors is not installed.
    """
    package = import_extra("safetensors.numpy", extra="export")
    # safetensors would save the buffer of a transposed view, in the wrong order.
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content: bytes = package.save(contiguous, metadata=metadata)
    return content


def import_extra(package: str, *, extra: str) -> ModuleType:
    """Imports a package that an extra of charjax installs.

    Raises:
      InputError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = (error.name or package).partition(".")[0]
        raise InputError(
            f"export: the package {missing} is not installed; run: pip install 'charjax[{extra}]'"
        ) from error


def vocabulary_metadata(vocab: Vocab) -> dict[str, object]:
    """The vocabulary, and the token to read where there is no prompt, as JSON values."""
    return vocab.to_json() | {"start": vocab.start}


def sampling_metadata(vocab: Vocab) -> dict[str, object]:
    """How charjax samples, as JSON values: masked tokens, the token that ends a text, the noise."""
    return {
        "masked": [] if vocab.unk_id is None else [vocab.unk_id],
        "end": vocab.boundary_id,
        "noise": "argmax(logits + temperature * gumbel); the noise of character p of sample i "
        f"has the threefry key fold_in(fold_in(fold_in(key(seed), {int(Stream.SAMPLE)}), i), p)",
    }


def named_weights(params: PyTree) -> Arrays:
    """The parameters by dotted name, such as `layer_0.recurrent.kernel`."""
    return {
        ".".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree.flatten_with_path(params)[0]
    }


def embedding(config: ModelConfig, params: PyTree) -> Float[np.ndarray, "vocab embed"]:
    """The embedding; for one-hot input, the identity matrix."""
    if config.embed:
        return np.asarray(params["embedding"])
    return np.eye(params["output_bias"].shape[0], dtype=np.float32)


def hidden_bias(layer: PyTree) -> Float[np.ndarray, " gates"]:
    """The bias of the hidden gates: zeros, except for the candidate of a cell with reset_after."""
    hidden, gates = layer["recurrent"]["kernel"].shape
    bias = np.zeros(gates, np.float32)
    if "bias" in layer["recurrent"]:
        bias[gates - hidden :] = layer["recurrent"]["bias"]
    return bias


def torch_weights(config: ModelConfig, params: PyTree) -> Arrays:
    """The state dict of {embedding: nn.Embedding, rnn: nn.GRU, nn.LSTM or nn.RNN, head: nn.Linear}.

    torch's order of gates is charjax's: reset, update, candidate for GRU; input, forget,
    candidate, output for LSTM. torch's kernels are transposed.
    """
    arrays = {"embedding.weight": embedding(config, params)}
    for i in range(config.layers):
        layer = params[f"layer_{i}"]
        arrays[f"rnn.weight_ih_l{i}"] = np.asarray(layer["kernel"]).T
        arrays[f"rnn.weight_hh_l{i}"] = np.asarray(layer["recurrent"]["kernel"]).T
        arrays[f"rnn.bias_ih_l{i}"] = np.asarray(layer["bias"])
        arrays[f"rnn.bias_hh_l{i}"] = hidden_bias(layer)
    arrays["head.weight"] = np.asarray(params["output_kernel"]).T
    arrays["head.bias"] = np.asarray(params["output_bias"])
    return arrays


# Order of gates: Keras' GRU has update, reset, candidate; its LSTM has charjax's order.
KERAS_GATES = {"gru": (1, 0, 2), "lstm": (0, 1, 2, 3), "rnn": (0,)}
_KERAS_LAYERS = {"gru": "gru", "lstm": "lstm", "rnn": "simple_rnn"}


def keras_weights(config: ModelConfig, params: PyTree) -> Arrays:
    """The variables of Sequential([Embedding, GRU, LSTM or SimpleRNN, ..., Dense]), by path."""
    order = KERAS_GATES[config.cell]
    arrays = {"layers/embedding/vars/0": embedding(config, params)}
    for i in range(config.layers):
        layer = params[f"layer_{i}"]
        name = _KERAS_LAYERS[config.cell] + (f"_{i}" if i else "")
        bias = reorder(np.asarray(layer["bias"]), order)
        if config.cell == "gru":  # with reset_after: biases of the input gates, the hidden gates
            bias = np.stack([bias, reorder(hidden_bias(layer), order)])
        path = f"layers/{name}/cell/vars"
        arrays[f"{path}/0"] = reorder(np.asarray(layer["kernel"]), order)
        arrays[f"{path}/1"] = reorder(np.asarray(layer["recurrent"]["kernel"]), order)
        arrays[f"{path}/2"] = bias
    arrays["layers/dense/vars/0"] = np.asarray(params["output_kernel"])
    arrays["layers/dense/vars/1"] = np.asarray(params["output_bias"])
    return arrays


def reorder(
    array: Float[np.ndarray, "*rows gates"], order: tuple[int, ...]
) -> Float[np.ndarray, "*rows gates"]:
    """Reorders the gates, which are equal blocks of the last axis."""
    blocks = np.split(array, len(order), axis=-1)
    return np.concatenate([blocks[gate] for gate in order], axis=-1)
