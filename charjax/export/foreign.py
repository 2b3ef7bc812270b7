"""Recurrent layers as torch, Keras and ONNX have them: two biases, and gates in another order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from charjax.config import CELL_SIZES, ModelConfig
from charjax.errors import InputError
from charjax.types import PyTree

# The cells that torch, Keras and ONNX have, too.
FOREIGN_CELLS = ("gru", "lstm", "rnn")
_MAX_IDENTITY_BYTES = 2**31 - 1  # a file of ONNX, which is protobuf, holds no more


class ForeignLayer(NamedTuple):
    """The arrays of a recurrent layer.

    Attributes:
      kernel: [features, gates].
      recurrent_kernel: [hidden, gates].
      bias: [gates], added to the input gates.
      hidden_bias: [gates], added to the hidden gates.
    """

    kernel: np.ndarray
    recurrent_kernel: np.ndarray
    bias: np.ndarray
    hidden_bias: np.ndarray


def foreign_layers(
    config: ModelConfig, params: PyTree, orders: Mapping[str, tuple[int, ...]]
) -> list[ForeignLayer]:
    """The recurrent layers of a model, with gates in the order of a framework.

    Args:
      config: the architecture.
      params: of a `CharRNN`.
      orders: for each cell, which gate of charjax comes first, second and so on.
    """
    layers = []
    for i in range(config.layers):
        layer = params[f"layer_{i}"]
        hidden_bias = np.zeros(layer["bias"].shape, np.float32)
        if "bias" in layer["recurrent"]:  # of the candidate, the last gate
            hidden_bias[-config.hidden :] = layer["recurrent"]["bias"]
        arrays = (layer["kernel"], layer["recurrent"]["kernel"], layer["bias"], hidden_bias)
        layers.append(reorder(ForeignLayer(*map(np.asarray, arrays)), orders[config.cell]))
    return layers


def layer_parameters(cell: str, layer: ForeignLayer) -> PyTree:
    """The parameters of a layer of `CharRNN`, with gates in charjax's order.

    Its input gates have one bias: the sum of both, rounded once.
    """
    hidden_bias, recurrent = layer.hidden_bias.copy(), {"kernel": layer.recurrent_kernel}
    if CELL_SIZES[cell].reset_after:  # the candidate keeps its hidden bias
        candidate = hidden_bias[-len(layer.recurrent_kernel) :]
        recurrent["bias"] = candidate.copy()
        candidate[:] = 0
    bias = (layer.bias.astype(np.float64) + hidden_bias).astype(np.float32)
    return {"kernel": layer.kernel, "bias": bias, "recurrent": recurrent}


def reorder(layer: ForeignLayer, order: tuple[int, ...]) -> ForeignLayer:
    """Reorders the gates, which are equal blocks of the last axis of each array."""
    blocks = (np.split(array, len(order), axis=-1) for array in layer)
    return ForeignLayer(*(np.concatenate([b[gate] for gate in order], axis=-1) for b in blocks))


def embedding(config: ModelConfig, params: PyTree) -> Float[np.ndarray, "vocab embed"]:
    """The embedding; for one-hot input, the identity matrix.

    Raises:
      InputError: that matrix would be too large.
    """
    if config.embed:
        return np.asarray(params["embedding"])
    tokens = params["output_bias"].shape[0]
    if (size := 4 * tokens**2) > _MAX_IDENTITY_BYTES:
        raise InputError(
            f"export: the one-hot input of {tokens:,} tokens would be a matrix of {size:,} bytes; "
            "use --format=program"
        )
    return np.eye(tokens, dtype=np.float32)
