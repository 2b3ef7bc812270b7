"""The sampling loop: one jitted `lax.scan` that reads a token and chooses the next one.

The rows of its batch are independent: each has its key, its position, its forced tokens and its
values of the controls. A row's tokens depend on the other rows only through the rounding of the
matmuls, and batch-invariant matmuls round each row alike in any batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from charjax.inference.copying import CopyTable
from charjax.inference.row_controls import Enabled, RowControls
from charjax.inference.sampling import (
    gumbel_noise,
    mask_below_min_p,
    mask_below_top_k,
    penalize_repetition,
    sample_with_noise,
)
from charjax.inference.sampling_program import Program, persistent_kernel
from charjax.inference.sampling_rows import Given, History, LoopCarry, Sampled
from charjax.model.decode import decode_step
from charjax.model.decode_weights import DecodeWeights
from charjax.runtime.compiler_options import loop_compiler_options
from charjax.runtime.keys import indexed_key


@functools.cache
def compiled_loop() -> Callable[..., tuple[LoopCarry, Sampled]]:
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
    loop: LoopCarry,
    given: Given,
    keys: Key[Array, " batch"],
    controls: RowControls,
    copies: CopyTable | None,
) -> tuple[LoopCarry, Sampled]:
    """Reads a token and chooses the next one, at each step; -1 where no token is left.

    Args:
      program: what it is compiled for.
      weights: of the model.
      loop: before the first step.
      given: to each step.
      keys: one per row.
      controls: of the rows.
      copies: forbids tokens that would complete a copied passage; None: off.
    """
    # All noise before the loop: inside, each draw would be a dozen tiny operations.
    position_keys = jax.vmap(jax.vmap(indexed_key), (None, 0))(keys, given.positions)
    noise = gumbel_noise(position_keys, weights.vocab_size)

    if program.is_persistent(weights.vocab_size, len(keys)):
        return _persistent_loop(program, weights, loop, given, noise, controls)
    keeps_history = program.enabled.penalty or copies is not None

    def advance(loop: LoopCarry, xs: tuple[Given, Array]) -> tuple[LoopCarry, Sampled]:
        step, step_noise = xs
        logits, state = decode_step(program.config, weights, loop.igates, loop.state)
        allowed = logits
        if copies is not None and loop.history.recent is not None:
            forbidden = copies.forbidden(loop.history.recent, weights.vocab_size)
            allowed = jnp.where(forbidden, -jnp.inf, allowed)
        allowed = _controlled(program.enabled, allowed, controls, loop.history, step.positions)
        nucleus = controls.top_p if program.enabled.top_p else None
        sampled = sample_with_noise(allowed, step_noise, controls.temperature, nucleus)
        if copies is not None:
            sampled = jnp.where(jnp.isneginf(jnp.max(allowed, axis=-1)), -1, sampled)
        token = jnp.where(step.forced >= 0, step.forced, sampled)
        read = token if copies is None else jnp.maximum(token, 0)
        history = loop.history.after(read, step.positions) if keeps_history else loop.history
        carry = LoopCarry(weights.lookup(read), state, history)
        logprobs = _logprobs(read, logits, program.enabled.num_top)
        return carry, Sampled(token, *logprobs)

    loop, sampled = jax.lax.scan(advance, loop, (given, noise))
    return loop, jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), sampled)


def _persistent_loop(
    program: Program,
    weights: DecodeWeights,
    loop: LoopCarry,
    given: Given,
    noise: Float[Array, "time batch vocab"],
    controls: RowControls,
) -> tuple[LoopCarry, Sampled]:
    """`_sampling_loop` as one kernel."""
    noise = jnp.expand_dims(controls.temperature, 0) * noise
    if program.enabled.has_bias:
        noise = noise + jnp.expand_dims(controls.bias, 0)
    tokens, state = persistent_kernel().decode(
        program.config.cell, weights, loop.state, loop.igates, given.forced, noise
    )
    return LoopCarry(weights.lookup(tokens[-1]), state, loop.history), Sampled(tokens.T)


def _controlled(
    enabled: Enabled,
    logits: Float[Array, "batch vocab"],
    controls: RowControls,
    history: History,
    positions: Int[Array, " batch"],
) -> Float[Array, "batch vocab"]:
    """The logits after all controls but the nucleus."""
    if enabled.has_bias:
        logits = logits + controls.bias
    if enabled.penalty and history.last_read is not None:
        is_recent = positions[:, None] - history.last_read <= controls.window
        logits = penalize_repetition(logits, controls.penalty, is_recent)
    if enabled.min_p:
        logits = mask_below_min_p(logits, controls.min_log_ratio)
    if enabled.top_k:
        logits = mask_below_top_k(logits, enabled.top_k, controls.top_k)
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
