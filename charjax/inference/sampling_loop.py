"""The sampling loop: one jitted `lax.scan` that reads a token and chooses the next one.

The rows of its batch are independent: each has its key, its position, its forced tokens and its
values of the controls. A row's tokens depend on the other rows only through the rounding of the
matmuls, and batch-invariant matmuls round each row alike in any batch.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from charjax.config import ModelConfig
from charjax.inference.copying import CopyTable
from charjax.inference.row_controls import AnyArray, Enabled, RowControls
from charjax.inference.sampling import (
    gumbel_noise,
    mask_below_min_p,
    mask_below_top_k,
    penalize_repetition,
    sample_with_noise,
)
from charjax.model.carry import initial_carry
from charjax.model.decode import DecodeState, DecodeWeights, decode_state, decode_step, reset_state
from charjax.model.recurrence.api import resolve
from charjax.runtime.compiler_options import loop_compiler_options
from charjax.runtime.keys import Stream, indexed_key, stream_key

# The position of a token that was not read yet: before all others, and at a distance from each that
# fits into int32.
_NEVER = -(2**30)


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


class Program(NamedTuple):
    """What the loop is compiled for.

    Attributes:
      config: the architecture.
      enabled: the controls of its rows.
      max_copy: characters of the passages of its `CopyTable`; 0: it has none.
    """

    config: ModelConfig
    enabled: Enabled
    max_copy: int = 0

    def is_persistent(self, vocab_size: int, batch: int) -> bool:
        """Whether the loop over a batch of a size is one persistent kernel on this GPU."""
        enabled = Enabled(bias=self.enabled.bias)  # what the kernel knows
        return (
            self.enabled == enabled
            and not self.max_copy
            and has_persistent_loop(self.config, vocab_size, batch)
        )


def has_persistent_loop(config: ModelConfig, vocab_size: int, batch: int) -> bool:
    """Whether the loop of programs with few controls is a persistent kernel on this GPU."""
    if resolve(config, batch, strict=False).implementation != "persistent":
        return False
    fits: bool = _persistent_kernel().fits(config, vocab_size, batch)
    return fits


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
    tokens, state = _persistent_kernel().decode(
        program.config.cell, weights, loop.state, loop.igates, given.forced, noise
    )
    return LoopCarry(weights.lookup(tokens[-1]), state, loop.history), Sampled(tokens.T)


def _persistent_kernel() -> ModuleType:
    # Imported on first use, since Pallas loads slowly.
    return importlib.import_module("charjax.model.recurrence.pallas_hopper.decode")


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
