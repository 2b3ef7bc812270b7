"""The rows of the sampling loop: how they start, what they are given, carry and have sampled."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from charjax.inference.row_controls import AnyArray
from charjax.inference.sampling_program import Program
from charjax.model.carry import initial_carry
from charjax.model.decode import DecodeState, decode_state, reset_state
from charjax.model.decode_weights import DecodeWeights
from charjax.runtime.keys import Stream, indexed_key, stream_key

# The position of a token that was not read yet: before all others, and at a distance from each that
# fits into int32.
_NEVER = -(2**30)


class Starts(NamedTuple):
    """How rows start.

    Attributes:
      seeds: of each row's random numbers.
      numbers: which sample of its seed each row is, from 0.
      tokens: the first one of each row's prompt.
      positions: of those tokens in the sample, negative.
    """

    seeds: UInt32[AnyArray, " batch"]
    numbers: Int[AnyArray, " batch"]
    tokens: Int[AnyArray, " batch"]
    positions: Int[AnyArray, " batch"]


class History(NamedTuple):
    """What a row has read, as far as a control needs it.

    Attributes:
      last_read: the position at which each token was last read; None: no control needs it.
      recent: the last tokens, as many as a `CopyTable` hashes; -1 before the first. Or None.
    """

    last_read: Int[Array, "batch vocab"] | None
    recent: Int[Array, "batch length"] | None

    def after(self, tokens: Int[Array, " batch"], positions: Int[Array, " batch"]) -> History:
        """The history when these tokens have been read."""
        last_read, recent = self
        if last_read is not None:
            is_token = jnp.arange(last_read.shape[1])[None] == tokens[:, None]
            last_read = jnp.where(is_token, positions[:, None], last_read)
        if recent is not None:
            recent = jnp.concatenate([recent[:, 1:], tokens[:, None]], axis=1)
        return History(last_read, recent)


class LoopCarry(NamedTuple):
    """What the loop carries: the next step's input gates, and the state before it."""

    igates: Float[Array, "_ _"]
    state: DecodeState
    history: History


class Given(NamedTuple):
    """What each step of each row is given.

    Attributes:
      forced: the token to read next; -1: sample it.
      positions: of that token in the sample; negative in the prompt.
    """

    forced: Int[AnyArray, "time batch"]
    positions: Int[AnyArray, "time batch"]


class Sampled(NamedTuple):
    """Tokens that the rows have read, forced or sampled.

    Attributes:
      ids: int32.
      logprobs: natural logarithms of their probabilities under the model at temperature 1, before
        any control; None where not asked for.
      top_ids: the likeliest tokens at each position, the likeliest first.
      top_logprobs: of those.
    """

    ids: Int[AnyArray, "batch time"]
    logprobs: Float[AnyArray, "batch time"] | None = None
    top_ids: Int[AnyArray, "batch time top"] | None = None
    top_logprobs: Float[AnyArray, "batch time top"] | None = None

    def on_host(self, selected: Any) -> Sampled:
        """The selected rows and steps as numpy arrays."""
        first, *rest = (None if leaf is None else np.asarray(leaf)[selected] for leaf in self)
        return Sampled(first, *rest)


@partial(jax.jit, static_argnums=0)
def start_rows(
    program: Program, weights: DecodeWeights, starts: Starts
) -> tuple[Key[Array, " batch"], LoopCarry]:
    """The key of each row, and the carry of rows that have read nothing yet."""
    roots = jax.vmap(partial(stream_key, stream=Stream.SAMPLE))(starts.seeds)
    keys = jax.vmap(indexed_key)(roots, starts.numbers)
    size = len(starts.tokens)
    state = decode_state(weights, initial_carry(program.config, size))
    last_read = recent = None
    if program.enabled.penalty:
        last_read = jnp.full((size, weights.vocab_size), _NEVER, jnp.int32)
    if program.max_copy:
        recent = jnp.full((size, program.max_copy), -1, jnp.int32)
    history = History(last_read, recent).after(starts.tokens, starts.positions)
    return keys, LoopCarry(weights.lookup(starts.tokens), state, history)


@partial(jax.jit, donate_argnums=1)
def replace_rows(
    weights: DecodeWeights,
    running: tuple[Key[Array, " batch"], LoopCarry],
    started: tuple[Key[Array, " batch"], LoopCarry],
    replaced: Bool[Array, " batch"],
) -> tuple[Key[Array, " batch"], LoopCarry]:
    """The keys and the carry of a running batch with some of its rows replaced.

    Args:
      weights: of the model.
      running: of the batch.
      started: from `start_rows`, of a batch of the same size.
      replaced: which rows to take from `started`.
    """
    (old_keys, old), (new_keys, new) = running, started
    over_igates = replaced if weights.features_first else replaced[:, None]
    history = jax.tree.map(
        lambda started, running: jnp.where(replaced[:, None], started, running),
        new.history,
        old.history,
    )
    return jnp.where(replaced, new_keys, old_keys), LoopCarry(
        jnp.where(over_igates, new.igates, old.igates),
        reset_state(weights, old.state, new.state, replaced),
        history,
    )
