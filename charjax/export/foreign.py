"""A model of another framework, and its conversion to the parameters of `CharRNN`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from charjax.config import ModelConfig
from charjax.errors import InputError
from charjax.export.weights import Arrays
from charjax.model.cells import CELLS
from charjax.schema import parse
from charjax.types import PyTree

_logger = logging.getLogger(__name__)


class ForeignLayer(NamedTuple):
    """The arrays of a recurrent layer, with the gates in charjax's order.

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


class ForeignModel(NamedTuple):
    """The arrays of a character model.

    Attributes:
      cell: "gru", "lstm" or "rnn".
      layers: from the input to the output.
      embedding: [vocab, embed]; None if the first layer reads one-hot vectors.
      output_kernel: [hidden, vocab].
      output_bias: [vocab].
      are_layers_checked: whether the file also said how each layer computes, and that was checked.
    """

    cell: str
    layers: tuple[ForeignLayer, ...]
    embedding: np.ndarray | None
    output_kernel: np.ndarray
    output_bias: np.ndarray
    are_layers_checked: bool = False


def cell_of(recurrent_kernel: Float[np.ndarray, "hidden gates"], where: str) -> str:
    """The cell whose number of gates a recurrent kernel has.

    Raises:
      InputError: there is no such cell.
    """
    hidden, gates = recurrent_kernel.shape
    for name, cell in CELLS.items():
        if cell.has_recurrent_kernel and gates == cell.gates * hidden:
            return name
    raise InputError(
        f"{where}: [{hidden}, {gates}] is no recurrent kernel of a GRU, LSTM or RNN, whose gates "
        "have as many units as its state"
    )


def in_order(names: Iterable[str]) -> list[str]:
    """The names of layers in natural order: gru, gru_2, gru_10.

    Where they differ in more than numbers, the order is a guess, which is logged.
    """
    ordered = sorted(names, key=_natural)
    if len({re.sub(r"_?\d+", "", name) for name in ordered}) > 1:
        _logger.info("the order of the layers is that of their names: %s", ", ".join(ordered))
    return ordered


def _natural(name: str) -> list[list[int | str]]:
    """Sort key: the parts of a path, in each of which numbers are compared by value."""
    parts = [re.split(r"(\d+)", part) for part in re.split(r"[./]", name)]
    return [[int(p) if i % 2 else p for i, p in enumerate(part)] for part in parts]


def as_float32(name: str, array: np.ndarray) -> np.ndarray:
    """The array in float32.

    Raises:
      InputError: its dtype is not floating point, or a value is not finite in float32.
    """
    if array.dtype.kind != "f":
        raise InputError(f"{name[:80]}: is {array.dtype}, not floating point")
    if array.dtype.itemsize > 4:
        _logger.info("%s: %s, rounded to float32", name[:80], array.dtype)
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{name[:80]}: is not finite in float32; it cannot be used")
    return array


def embedding_and_head(has_bias: Mapping[str, bool]) -> tuple[str | None, str]:
    """The names of the embedding (None: one-hot input) and of the projection to the logits.

    Args:
      has_bias: whether a matrix has a bias, for each matrix outside the recurrent layers.

    Raises:
      InputError: there are other matrices, or it is not clear which is which.
    """
    names = list(has_bias)
    if len(names) == 1:
        return None, names[0]
    heads = [name for name in names if has_bias[name]]
    if len(names) == 2 and len(heads) != 1:
        heads = [name for name in names if "emb" not in name.lower()]
    if len(names) != 2 or len(heads) != 1:
        shown = ", ".join(name[:60] for name in sorted(names)[:4]) or "none"
        raise InputError(
            f"there must be one embedding, or none, and one projection to the logits; beside the "
            f"recurrent layers it has the matrices: {shown}"
        )
    (embedding,) = set(names) - set(heads)
    return embedding, heads[0]


def check_all_used(arrays: Arrays, used: set[str], what: str) -> None:
    """Raises InputError if the file has arrays for which charjax's model has no use."""
    unknown = sorted(arrays.keys() - used)
    if unknown:
        shown = ", ".join(name[:60] for name in unknown[:4])
        more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        raise InputError(
            f"{what} {shown}{more}: charjax's model has no such part: it is an embedding or "
            "one-hot input, layers of one GRU, LSTM or RNN cell, and one projection to the logits"
        )


def model_config(model: ForeignModel, vocab_size: int) -> ModelConfig:
    """The architecture of a model whose arrays have consistent shapes.

    Raises:
      InputError: the shapes do not fit each other or the vocabulary, or exceed charjax's limits.
    """
    hidden = model.layers[0].recurrent_kernel.shape[0]
    gates = CELLS[model.cell].gates * hidden
    features = vocab_size if model.embedding is None else model.embedding.shape[1]
    wanted: list[tuple[str, np.ndarray, tuple[int, ...]]] = []
    if model.embedding is not None:
        wanted.append(("the embedding", model.embedding, (vocab_size, features)))
    for i, layer in enumerate(model.layers):
        shapes = ((features, gates), (hidden, gates), (gates,), (gates,))
        wanted += [
            (f"layer {i}: {name.replace('_', ' ')}", array, shape)
            for name, array, shape in zip(layer._fields, layer, shapes, strict=True)
        ]
        features = hidden
    wanted.append(("the output kernel", model.output_kernel, (hidden, vocab_size)))
    wanted.append(("the output bias", model.output_bias, (vocab_size,)))
    for name, array, shape in wanted:
        if array.shape != shape:
            raise InputError(
                f"{name} is {[*array.shape]}, not {[*shape]}: the model has {len(model.layers)} x "
                f"{hidden} units and {vocab_size} tokens"
            )
    table = _lookup_table(model)
    embed = 0 if table is None else table.shape[1]
    sizes = {"cell": model.cell, "hidden": hidden, "layers": len(model.layers), "embed": embed}
    config: ModelConfig = parse(ModelConfig, sizes, "model")
    return config


def parameters(model: ForeignModel, order: list[int]) -> PyTree:
    """The parameters of the `CharRNN` with the same logits.

    Its input gates have one bias: the sum of `bias` and `hidden_bias`, rounded once. An identity
    embedding becomes one-hot input.

    Args:
      model: the arrays.
      order: the id in `model` of each token of charjax's vocabulary.
    """
    params: dict[str, PyTree] = {}
    table = _lookup_table(model)
    if table is not None:
        params["embedding"] = table[order]
    for i, layer in enumerate(model.layers):
        kernel = layer.kernel[order] if i == 0 and table is None else layer.kernel
        hidden, gates = layer.recurrent_kernel.shape
        hidden_bias, recurrent = layer.hidden_bias.copy(), {"kernel": layer.recurrent_kernel}
        if CELLS[model.cell].reset_after:  # the candidate keeps its hidden bias
            recurrent["bias"] = hidden_bias[gates - hidden :].copy()
            hidden_bias[gates - hidden :] = 0
        bias = (layer.bias.astype(np.float64) + hidden_bias).astype(np.float32)
        params[f"layer_{i}"] = {"kernel": kernel, "bias": bias, "recurrent": recurrent}
    params["output_kernel"] = np.ascontiguousarray(model.output_kernel[:, order])
    return params | {"output_bias": model.output_bias[order]}


def _lookup_table(model: ForeignModel) -> np.ndarray | None:
    """The embedding; None for one-hot input, which an identity matrix is, too."""
    table = model.embedding
    if table is None or table.shape[0] != table.shape[1]:
        return table
    return None if np.array_equal(table, np.eye(len(table))) else table
