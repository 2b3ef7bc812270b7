"""The rows of the sampling loop: how they start, what they carry and have sampled."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from charjax.config import ModelConfig
from charjax.inference.sampling.row_options import AnyArray
from charjax.model.carry import initial_carry
from charjax.model.decode import DecodeState, decode_state
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
    """What a row has read, as far as an option needs it.

    Attributes:
      last_read: the position at which each token was last read; None: no option needs it.
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


class Rows(NamedTuple):
    """What the loop carries for its rows from step to step.

    Attributes:
      keys: of the random numbers of each row's sample.
      positions: of the next token in the sample; negative in the prompt.
      igates: of the last token.
      state: before it.
      history: with it.
    """

    keys: Key[Array, " batch"]
    positions: Int[Array, " batch"]
    igates: Float[Array, "_ _"]
    state: DecodeState
    history: History


class Sampled(NamedTuple):
    """Tokens that the rows have read, forced or sampled.

    Attributes:
      ids: int32.
      logprobs: natural logarithms of their probabilities under the model at temperature 1, before
        any option; None where not asked for.
      top_ids: the likeliest tokens at each position, the likeliest first.
      top_logprobs: of those.
    """

    ids: Int[AnyArray, "batch time"]
    logprobs: Float[AnyArray, "batch time"] | None = None
    top_ids: Int[AnyArray, "batch time top"] | None = None
    top_logprobs: Float[AnyArray, "batch time top"] | None = None

    def on_host(self, selected: Any) -> Sampled:
        """The selected rows and steps as numpy arrays."""
        # A server does this for each row of a few tokens, for which jax.tree.map takes too long.
        leaves: list[Any] = [leaf if leaf is None else np.asarray(leaf)[selected] for leaf in self]
        return Sampled(*leaves)


@partial(jax.jit, static_argnames=("config", "penalty", "max_copy"))
def start_rows(
    config: ModelConfig, weights: DecodeWeights, starts: Starts, *, penalty: bool, max_copy: int
) -> Rows:
    """Rows that have read their first token.

    Args:
      config: the architecture.
      weights: of the model.
      starts: of the rows.
      penalty: whether a row may have a repetition penalty.
      max_copy: the `length` of their `CopyTable`; 0: they have none.
    """
    roots = jax.vmap(partial(stream_key, stream=Stream.SAMPLE))(starts.seeds)
    keys = jax.vmap(indexed_key)(roots, starts.numbers)
    size = len(starts.tokens)
    state = decode_state(weights, initial_carry(config, size))
    history = History(
        jnp.full((size, weights.vocab_size), _NEVER, jnp.int32) if penalty else None,
        jnp.full((size, max_copy), -1, jnp.int32) if max_copy else None,
    )
    history = history.after(starts.tokens, starts.positions)
    return Rows(keys, starts.positions + 1, weights.lookup(starts.tokens), state, history)


@partial(jax.jit, donate_argnums=1)
def replace_rows(
    weights: DecodeWeights, running: Rows, started: Rows, replaced: Bool[Array, " batch"]
) -> Rows:
    """A running batch with some of its rows replaced.

    Args:
      weights: of the model.
      running: the batch.
      started: from `start_rows`, of a batch of the same size.
      replaced: which rows to take from `started`.
    """
    column = replaced[:, None]
    in_layout = replaced if weights.features_first else column
    masks = (replaced, replaced, in_layout, in_layout, column)  # of the fields of `Rows`
    parts: list[Any] = [
        jax.tree.map(partial(jnp.where, mask), new, old)
        for mask, new, old in zip(masks, started, running, strict=True)
    ]
    return Rows(*parts)
