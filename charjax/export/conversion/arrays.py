"""Makes a character model of the arrays that a file of another framework holds."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from charjax.config import CELL_SIZES, ModelConfig
from charjax.errors import InputError
from charjax.export.foreign import FOREIGN_CELLS, ForeignLayer, layer_parameters, reorder
from charjax.export.weights import named_weights
from charjax.model.shapes import param_shapes
from charjax.runtime.display import listed
from charjax.runtime.safetensors import Arrays, check_shapes
from charjax.schema import parse
from charjax.types import PyTree

_BY_NAME = "%s is taken to be %s, by its name"

_logger = logging.getLogger(__name__)


class ConvertedModel(NamedTuple):
    """A model of another framework, whose tokens still have its ids.

    Attributes:
      config: the architecture.
      params: of a `CharRNN`.
      are_layers_checked: whether the file also said how each layer computes, and that was checked.
    """

    config: ModelConfig
    params: PyTree
    are_layers_checked: bool = False

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return int(self.params["output_bias"].size)


@contextlib.contextmanager
def as_input_errors(what: str) -> Iterator[None]:
    """Turns the errors, of any type, that a damaged file causes in a reader into InputErrors."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{what} ({type(error).__name__})") from None


def split_layers(arrays: Arrays, pattern: re.Pattern[str]) -> tuple[dict[str, Arrays], Arrays]:
    """(the parts of each recurrent layer by its name, all other arrays).

    Args:
      arrays: by name.
      pattern: of the names of parts. Its groups are `layer` and `part`, and `number` if the name of
        a layer goes on elsewhere.
    """
    layers: dict[str, Arrays] = {}
    others: Arrays = {}
    for name, array in arrays.items():
        if match := pattern.fullmatch(name):
            layer = match["layer"] + (match.groupdict().get("number") or "")
            layers.setdefault(layer, {})[match["part"]] = array
        else:
            others[name] = array
    return layers, others


def model_of(
    layers: Mapping[str, ForeignLayer],
    others: Arrays,
    *,
    suffixes: tuple[str, str],
    is_transposed: bool,
    orders: Mapping[str, tuple[int, ...]],
) -> ConvertedModel:
    """The model of arrays in float32.

    An identity embedding becomes one-hot input.

    Args:
      layers: the recurrent layers by name.
      others: the other arrays by name.
      suffixes: how the name of a matrix ends, and that of its bias.
      is_transposed: whether the projection to the logits is [vocab, hidden], not [hidden, vocab].
      orders: for each cell, where each gate of charjax is among those of the layers.

    Raises:
      InputError: charjax has no such model, or the shapes do not fit each other.
    """
    kinds = {
        "cell": {cell_of(name, layer) for name, layer in layers.items()},
        "size": {f"{len(layer.recurrent_kernel)} units" for layer in layers.values()},
    }
    for kind, found in kinds.items():
        if len(found) > 1:
            raise InputError(
                f"has layers of {' and '.join(sorted(found))}; charjax has one {kind} a model"
            )
    (cell,) = kinds["cell"]
    ordered = [reorder(layers[name], orders[cell]) for name in in_order(layers)]
    embedding, head = _embedding_and_head(others, *suffixes, features=len(ordered[0].kernel))
    output_kernel = others[head].T if is_transposed else others[head]
    hidden, vocab = len(ordered[0].recurrent_kernel), output_kernel.shape[1]
    if embedding is None and _is_tied(head, len(ordered[0].kernel), hidden, vocab):
        embedding = head
    bias = head.removesuffix(suffixes[0]) + suffixes[1]
    _check_all_used(others, {head, bias, embedding})
    params = {f"layer_{i}": layer_parameters(cell, layer) for i, layer in enumerate(ordered)}
    params["output_kernel"] = output_kernel
    params["output_bias"] = others.get(bias, np.zeros(vocab, np.float32))
    embed = 0
    if embedding is not None and not _is_identity(others[embedding]):
        params["embedding"] = others[embedding]
        embed = others[embedding].shape[1]
    sizes = {"cell": cell, "hidden": hidden, "layers": len(ordered), "embed": embed}
    config = parse(ModelConfig, sizes, "model")
    named = {name.replace(".", "/"): array for name, array in named_weights(params).items()}
    check_shapes(named, param_shapes(config, vocab))
    return ConvertedModel(config, params)


def with_order(params: PyTree, order: list[int]) -> PyTree:
    """The parameters with other ids: token i is the present token `order[i]`."""
    changed = {
        "output_kernel": np.ascontiguousarray(params["output_kernel"][:, order]),
        "output_bias": params["output_bias"][order],
    }
    if "embedding" in params:
        return params | changed | {"embedding": params["embedding"][order]}
    first = params["layer_0"] | {"kernel": params["layer_0"]["kernel"][order]}
    return params | changed | {"layer_0": first}


def cell_of(name: str, layer: ForeignLayer) -> str:
    """The cell that has as many gates as a layer.

    Raises:
      InputError: there is no such cell.
    """
    kernels, biases = layer[:2], layer[2:]
    gates = {kernel.shape[1:] for kernel in kernels} | {bias.shape for bias in biases}
    for cell in FOREIGN_CELLS:
        if gates == {(CELL_SIZES[cell].gates * len(layer.recurrent_kernel),)}:
            return cell
    shapes = ", ".join(str([*array.shape]) for array in layer)
    raise InputError(
        f"{name[:80]}: the kernel, recurrent kernel and biases are {shapes}: not those of a GRU, "
        "LSTM or RNN, whose gates have as many units as its state"
    )


def in_order(layers: Mapping[str, ForeignLayer]) -> list[str]:
    """The names of layers in natural order: gru, gru_2, gru_10.

    A layer that does not read as many features as a layer has units must be the first. Where the
    names differ in more than numbers, the order is a guess, which is logged.
    """
    ordered = sorted(layers, key=_natural)
    ordered.sort(key=lambda name: len(layers[name].kernel) == len(layers[name].recurrent_kernel))
    if len({re.sub(r"_?\d+", "", name) for name in ordered}) > 1:
        _logger.info("the layers are taken in this order: %s", ", ".join(ordered))
    return ordered


def _natural(name: str) -> list[list[int | str]]:
    """Sort key: the parts of a path, in each of which numbers are compared by value."""
    parts = [re.split(r"(\d+)", part) for part in re.split(r"[./]", name)]
    return [[int(p) if i % 2 else p for i, p in enumerate(part)] for part in parts]


def _embedding_and_head(
    others: Arrays, weight: str, bias: str, *, features: int
) -> tuple[str | None, str]:
    """The names of the embedding (None: one-hot input) and of the projection to the logits.

    The projection has a bias. If both or none have one, the embedding alone is [vocab, features].
    Of two that are equal (tied) either is the projection. Else the embedding has "emb" in its name,
    which is a guess, and logged.
    """
    names = [name for name, array in others.items() if name.endswith(weight) and array.ndim == 2]
    if len(names) == 1:
        return None, names[0]
    heads = [name for name in names if name.removesuffix(weight) + bias in others]
    if len(heads) != 1:
        heads = [name for name in names if others[name].shape[1] != features]
    if len(heads) != 1 and len(names) == 2 and np.array_equal(others[names[0]], others[names[1]]):
        heads = names[:1]
    is_guess = len(heads) != 1
    if is_guess:
        heads = [name for name in names if "emb" not in name.lower()]
    if len(names) != 2 or len(heads) != 1:
        remedy = "; give the embedding alone a name with 'emb' in it" if len(names) == 2 else ""
        raise InputError(
            "there must be one embedding, or none, and one projection to the logits; beside the "
            f"recurrent layers it has the matrices: {shown(names) or 'none'}{remedy}"
        )
    (embedding,) = set(names) - set(heads)
    if is_guess:
        _logger.info(_BY_NAME, embedding[:60], "the embedding")
    return embedding, heads[0]


def _is_tied(head: str, features: int, hidden: int, vocab: int) -> bool:
    """Whether the only matrix is also the embedding; if not, the input is one-hot.

    The sizes tell it unless they are all the same. Then its name does, a guess, which is logged.
    """
    if not features == hidden == vocab:
        return features != vocab
    is_tied = "emb" in head.lower()
    others = "the embedding, too" if is_tied else "the projection alone, and the input one-hot"
    _logger.info(_BY_NAME, head[:60], others)
    return is_tied


def _check_all_used(arrays: Arrays, used: set[str | None]) -> None:
    if unknown := arrays.keys() - used:
        raise InputError(
            f"has {shown(unknown)}: charjax's model has no such part: it is an embedding or "
            "one-hot input, layers of one GRU, LSTM or RNN cell, and one projection to the logits"
        )


def shown(names: Iterable[str]) -> str:
    """Names for a message."""
    return listed([name[:60] for name in sorted(names)], 4)


def _is_identity(table: np.ndarray) -> bool:
    return table.shape[0] == table.shape[1] and np.array_equal(table, np.eye(len(table)))
