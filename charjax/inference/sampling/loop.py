"""The sampling loop: one jitted `lax.scan` that reads a token and chooses the next one.

The rows of its batch are independent: each has its key, its position, its forced tokens and its
values of the options. A row's tokens depend on the other rows only through the rounding of the
matmuls, and batch-invariant matmuls round each row alike in any batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from charjax.config import ModelConfig
from charjax.inference.sampling.copying import CopyTable
from charjax.inference.sampling.logits import (
    gumbel_noise,
    mask_below_min_p,
    mask_below_top_k,
    penalize_repetition,
    sample_with_noise,
)
from charjax.inference.sampling.row_options import RowOptions
from charjax.inference.sampling.rows import History, Rows, Sampled
from charjax.model.decode import decode_step
from charjax.model.decode_weights import DecodeWeights
from charjax.runtime.compiler_options import loop_compiler_options
from charjax.runtime.keys import indexed_key


class Program(NamedTuple):
    """What the loop is compiled for.

    Attributes:
      config: the architecture.
      num_top: how many of the likeliest tokens come with their log-probabilities, beside the
        chosen one; None: no log-probabilities.
      persistent: whether it is one persistent kernel, which has no other options than those that
        `RowOptions.only_add`, no log-probabilities and no `CopyTable`.
    """

    config: ModelConfig
    num_top: int | None = None
    persistent: bool = False


@functools.cache
def compiled_loop() -> Callable[..., tuple[Rows, Sampled]]:
    """`_sampling_loop`, jitted."""
    # Compiled when first used: the compiler options ask for the platform.
    return jax.jit(
        _sampling_loop,
        static_argnums=0,
        donate_argnums=2,
        compiler_options=loop_compiler_options(),
    )


def _sampling_loop(
    program: Program,
    weights: DecodeWeights,
    rows: Rows,
    forced: Int[Array, "time batch"],
    options: RowOptions,
    copies: CopyTable | None,
) -> tuple[Rows, Sampled]:
    """Reads a token and chooses the next one, at each step; -1 where no token is left.

    Args:
      program: what it is compiled for.
      weights: of the model.
      rows: before the first step.
      forced: the token to choose at each step; -1: sample it.
      options: of the rows.
      copies: forbids tokens that would complete a copied passage; None: off.
    """
    # All noise before the loop: inside, each draw would be a dozen tiny operations.
    positions = rows.positions[None] + jnp.arange(len(forced), dtype=jnp.int32)[:, None]
    position_keys = jax.vmap(jax.vmap(indexed_key), (None, 0))(rows.keys, positions)
    noise = gumbel_noise(position_keys, weights.vocab_size)
    if program.persistent:
        return _persistent_loop(program, weights, rows, forced, noise, options)

    def advance(rows: Rows, step: tuple[Array, Array, Array]) -> tuple[Rows, Sampled]:
        forced, positions, noise = step
        logits, state = decode_step(program.config, weights, rows.igates, rows.state)
        allowed = logits
        if copies is not None and rows.history.recent is not None:
            forbidden = copies.forbidden(rows.history.recent, weights.vocab_size)
            allowed = jnp.where(forbidden, -jnp.inf, allowed)
        allowed = _with_options(allowed, options, rows.history, positions)
        sampled = sample_with_noise(allowed, noise, options.temperature, options.top_p)
        if copies is not None:
            sampled = jnp.where(jnp.isneginf(jnp.max(allowed, axis=-1)), -1, sampled)
        token = jnp.where(forced >= 0, forced, sampled)
        read = token if copies is None else jnp.maximum(token, 0)
        history = rows.history
        if options.penalty is not None or copies is not None:
            history = history.after(read, positions)
        rows = rows._replace(igates=weights.lookup(read), state=state, history=history)
        return rows, Sampled(token, *_logprobs(read, logits, program.num_top))

    rows, sampled = jax.lax.scan(advance, rows, (forced, positions, noise))
    rows = rows._replace(positions=rows.positions + len(forced))
    return rows, jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), sampled)


def _persistent_loop(
    program: Program,
    weights: DecodeWeights,
    rows: Rows,
    forced: Int[Array, "time batch"],
    noise: Float[Array, "time batch vocab"],
    options: RowOptions,
) -> tuple[Rows, Sampled]:
    """`_sampling_loop` as one kernel."""
    # Imported on first use, since Pallas loads slowly.
    from charjax.model.recurrence.pallas_hopper.decode import decode

    noise = jnp.expand_dims(options.temperature, 0) * noise
    if options.bias is not None:
        noise = noise + jnp.expand_dims(options.bias, 0)
    cell = program.config.cell
    tokens, state = decode(cell, weights, rows.state, rows.igates, forced, noise)
    igates, positions = weights.lookup(tokens[-1]), rows.positions + len(forced)
    return rows._replace(igates=igates, state=state, positions=positions), Sampled(tokens.T)


def _with_options(
    logits: Float[Array, "batch vocab"],
    options: RowOptions,
    history: History,
    positions: Int[Array, " batch"],
) -> Float[Array, "batch vocab"]:
    """The logits after all options but the nucleus."""
    if options.bias is not None:
        logits = logits + options.bias
    if options.penalty is not None and history.last_read is not None:
        is_recent = positions[:, None] - history.last_read <= options.window
        logits = penalize_repetition(logits, options.penalty, is_recent)
    if options.min_log_ratio is not None:
        logits = mask_below_min_p(logits, options.min_log_ratio)
    if options.top_k is not None:
        logits = mask_below_top_k(logits, options.max_k, options.top_k)
    return logits


def _logprobs(
    tokens: Int[Array, " batch"], logits: Float[Array, "batch vocab"], num_top: int | None
) -> tuple[Array, ...]:
    """`Sampled` but for the ids."""
    if num_top is None:
        return ()
    logprobs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logprobs, tokens[:, None], axis=1)[:, 0]
    top, ids = jax.lax.top_k(logprobs, min(num_top, logits.shape[1]))
    return chosen, ids.astype(jnp.int32), top
