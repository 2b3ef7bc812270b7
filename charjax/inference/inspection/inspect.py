"""A look into a model along a text: its predictions, its activations, and what its units track."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from charjax.config import ModelConfig
from charjax.data.packed.tokens import TokenIds
from charjax.data.tokens.ids import as_ids, check_ids
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.inference.inspection.units import Separation, separations
from charjax.inference.load import TrainedModel
from charjax.inference.scoring.predictions import Predictions, predict
from charjax.model.carry import initial_carry
from charjax.model.cells import CELLS
from charjax.model.decode import DecodeState, decode_state, decode_step, reset_state
from charjax.model.decode_weights import DecodeWeights, decode_weights
from charjax.runtime.display import ProgressFn

_CHUNK = 1024  # characters in one dispatch


class Inspection(NamedTuple):
    """What a model does along a text.

    Attributes:
      trained: the model.
      ids: of the text.
      predictions: for every character but the first.
      activations: of every unit after each character, from -1 to 1.
      separations: the units that best separate each feature.
    """

    trained: TrainedModel
    ids: Int[np.ndarray, " chars"]
    predictions: Predictions
    activations: Float[np.ndarray, "units chars"]
    separations: list[Separation]


def inspect(trained: TrainedModel, ids: TokenIds, progress: ProgressFn) -> Inspection:
    """Runs a model over a text.

    Args:
      trained: the model.
      ids: of the text.
      progress: called with the number of chunks of the predictions and of the activations that
        are done, and the total of either.

    Raises:
      InputError: the text has fewer than two characters, or these are no ids of tokens.
      DivergedError: the loss is not finite.
    """
    ids = as_ids(ids)
    check_ids(ids, len(trained.vocab))
    ids = ids.astype(np.int32)
    predictions = predict(trained, ids, progress)
    states = _states(trained, ids, progress)
    # tanh keeps the order of the states, by which units are compared, but float32 does not: it
    # rounds the tanh of all states from 9 on to 1.
    found = separations(feature_text(trained.vocab, ids), states)
    return Inspection(trained, ids, predictions, _bounded(trained, states), found)


def feature_text(vocab: Vocab, ids: Int[np.ndarray, " chars"]) -> str:
    """The text of token ids with one character for each: a document boundary is a line end.

    [UNK] and the bytes of longer characters are U+FFFD.
    """
    unknown = "\ufffd"
    characters = [c if vocab.unit != "byte" or c.isascii() else unknown for c in vocab.characters]
    table = vocab.by_id(characters, boundary="\n", unk=unknown)
    return "".join(table[i] for i in ids)


def activations(
    trained: TrainedModel, ids: TokenIds, progress: ProgressFn
) -> Float[np.ndarray, "units chars"]:
    """The activation of every unit after each character of a text, from -1 to 1.

    It is the output h; of an LSTM the tanh of the cell state c, which shows what the cell stores
    even while its output gate is closed (Karpathy, Johnson and Fei-Fei 2015, arXiv:1506.02078); of
    a cell without a recurrent kernel, whose h has no bounds, the tanh of h.

    Args:
      trained: the model.
      ids: of the text, at least one.
      progress: called with the number of chunks done and the total.

    Returns:
      float32; the units of the first layer come first.

    Raises:
      InputError: the text is empty, or has an id outside the vocabulary.
    """
    return _bounded(trained, _states(trained, as_ids(ids), progress))


def _bounded(
    trained: TrainedModel, states: Float[np.ndarray, "units chars"]
) -> Float[np.ndarray, "units chars"]:
    """The activations of units in these states."""
    cell = CELLS[trained.config.model.cell]
    is_output = cell.states == 1 and cell.has_recurrent_kernel  # in [-1, 1] already
    return states if is_output else np.tanh(states)


def _states(
    trained: TrainedModel, ids: Int[np.ndarray, " chars"], progress: ProgressFn
) -> Float[np.ndarray, "units chars"]:
    """The last array of each layer's carry after each character: h, of an LSTM c."""
    if ids.size == 0:
        raise InputError("the text is empty: there is no activation after a character")
    check_ids(ids, len(trained.vocab))
    config = trained.config.model
    weights = jax.jit(partial(decode_weights, config, layout="vector"))(trained.params)
    state = decode_state(weights, initial_carry(config, 1))
    boundary_id = trained.vocab.boundary_id
    chunks = math.ceil(ids.size / _CHUNK)
    padded = np.pad(ids, (0, chunks * _CHUNK - ids.size), mode="edge")
    parts = []
    for chunk, tokens in enumerate(np.split(padded, chunks)):
        resets = None if boundary_id is None else tokens == boundary_id
        state, units = _chunk_states(config, weights, state, (tokens, resets))
        parts.append(np.asarray(units))
        progress(chunk + 1, chunks)
    return np.concatenate(parts)[: ids.size].T


@partial(jax.jit, static_argnums=0)
def _chunk_states(
    config: ModelConfig,
    weights: DecodeWeights,
    state: DecodeState,
    read: tuple[Int[Array, " time"], Bool[Array, " time"] | None],
) -> tuple[DecodeState, Float[Array, "time units"]]:
    def advance(state: DecodeState, read: tuple[Array, Array | None]) -> tuple[DecodeState, Array]:
        token, reset = read
        if reset is not None:
            state = reset_state(weights, state, reset[None])
        _, state = decode_step(config, weights, weights.lookup(token[None]), state)
        return state, jnp.concatenate([layer[-1] for layer in state.carry]).ravel()

    return jax.lax.scan(advance, state, read)
