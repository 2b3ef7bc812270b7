"""Dynamic evaluation: the model learns from each segment of a text after it has predicted it.

Krause et al. 2018 (arXiv:1709.07432), by their rule with decay to the trained weights and RMS
scaling. With theta_0 the trained weights, theta those in use, g the gradient of a segment's mean
loss, and s the root mean square of the gradients of batches of the training text:

    theta += min(1, decay * s / mean(s)) * (theta_0 - theta) - learning_rate * g / (s + epsilon)

The mean is over all weights, as in DeepMind's lamb. A segment's characters are predicted before
the update, so that no loss depends on characters that the model has seen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from optax.losses import softmax_cross_entropy_with_integer_labels

from charjax.config import ModelConfig
from charjax.data.packed.tokens import TokenIds
from charjax.errors import InputError
from charjax.inference.options import DynamicOptions
from charjax.inference.scoring.forward_pass import (
    Piece,
    ZeroCarry,
    as_scored_ids,
    inputs_and_targets,
)
from charjax.inference.scoring.forward_program import Measure, network_logits
from charjax.model.carry import initial_carry
from charjax.runtime.display import ProgressFn, counted, no_progress
from charjax.types import Carry, PyTree, Resets, Scalar, Tokens

_ROWS = 100  # sequences of a batch of the training text, as Krause et al. have it
_MAX_BATCHES = 500  # of the training text
_DISPATCH = 1024  # characters of a sequence in one dispatch, about


class UpdateRule(NamedTuple):
    """The update as one multiplication for each of its terms; trees like the parameters.

    Attributes:
      trained: the trained parameters.
      pull: the factor of the difference to the trained parameters.
      rate: the factor of the gradient.
    """

    trained: PyTree
    pull: PyTree
    rate: PyTree


def update_rule(params: PyTree, rms: PyTree, options: DynamicOptions) -> UpdateRule:
    """The rule of the module's docstring.

    Args:
      params: the trained parameters.
      rms: `gradient_rms` of the training text.
      options: the constants of the rule.
    """
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(rms)]
    mean = sum(leaf.sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)
    decay = float(options.decay / max(mean, np.finfo(np.float32).tiny))
    return UpdateRule(
        jax.tree.map(jnp.asarray, params),
        jax.tree.map(lambda s: jnp.minimum(1.0, decay * s), rms),
        jax.tree.map(lambda s: options.learning_rate / (s + options.epsilon), rms),
    )


def gradient_rms(
    config: ModelConfig,
    params: PyTree,
    ids: TokenIds,
    *,
    zero_carry: ZeroCarry,
    segment: int,
    progress: ProgressFn = no_progress,
) -> PyTree:
    """The root mean square, over batches of a text, of the gradient of their mean loss.

    Args:
      config: the architecture.
      params: of a `CharRNN`.
      ids: token ids of the training text. Up to 100 sequences, which begin at equal distances in
        it, are read side by side, each for up to 500 segments.
      zero_carry: where the carry is zero.
      segment: characters of each sequence in a batch.
      progress: called with the number of dispatches done and the total.

    Raises:
      InputError: the text has no whole segment, or an id outside the vocabulary.
    """
    rows = min(_ROWS, (ids.size - 1) // segment)
    if rows < 1:
        raise InputError(
            f"--segment={segment}: the text that this run was trained on has "
            f"{counted(ids.size, 'character')}, fewer than a segment and one"
        )
    stride = (ids.size - 1) // rows
    batches = min(_MAX_BATCHES, stride // segment)
    per_dispatch = min(batches, max(1, _DISPATCH // segment))
    dispatches = batches // per_dispatch
    carry, sums = initial_carry(config, rows), jax.tree.map(jnp.zeros_like, params)
    params = jax.tree.map(jnp.asarray, params)
    read = np.arange(per_dispatch * segment)
    for i in range(dispatches):
        at = stride * np.arange(rows)[:, None] + i * len(read) + read
        segments = _segments(params, ids, at, zero_carry, segment)
        carry, sums = _add_squares(config, params, carry, sums, segments)
        progress(i + 1, dispatches)
    return jax.tree.map(lambda s: jnp.sqrt(s / (dispatches * per_dispatch)), sums)


def iter_dynamic(
    measure: Measure,
    config: ModelConfig,
    rule: UpdateRule,
    ids: TokenIds,
    *,
    zero_carry: ZeroCarry,
    segment: int,
    progress: ProgressFn = no_progress,
) -> Iterator[Piece]:
    """What a function computes from the logits of every character but the first, piece by piece.

    Args:
      measure: as for `charjax.inference.scoring.forward_pass.iter_predictions`.
      config: the architecture.
      rule: how the weights change.
      ids: token ids of the text.
      zero_carry: where the carry is zero; the weights are not reset there.
      segment: characters between two updates.
      progress: called with the number of dispatches done and the total.

    Yields:
      Pieces, in the order of the text.

    Raises:
      InputError: the text has fewer than two characters, or an id outside the vocabulary.
    """
    ids = as_scored_ids(ids)
    # For one sequence XLA's loop is nearly three times as fast as the C loops.
    config = replace(config, recurrence="xla")
    length = max(1, _DISPATCH // segment) * segment
    dispatches = math.ceil((ids.size - 1) / length)
    carry, params = initial_carry(config, 1), jax.tree.map(jnp.copy, rule.trained)
    for i in range(dispatches):
        # The last positions are beyond the text; what they predict is cut off.
        at = np.arange(length)[None] + i * length
        segments = _segments(rule.trained, ids, at, zero_carry, segment)
        carry, params, values = _learn(config, measure, rule, carry, params, segments)
        values = jax.device_get(values)
        progress(i + 1, dispatches)
        start = i * length
        inside = slice(ids.size - 1 - start)
        yield Piece(start, jax.tree.map(lambda v, i=inside: np.concatenate(v[:, 0])[i], values))


class _Segments(NamedTuple):
    """Consecutive segments of a text, [segments, rows, time]."""

    inputs: Tokens
    targets: Tokens
    resets: Resets | None


def _segments(
    params: PyTree, ids: TokenIds, at: np.ndarray, zero_carry: ZeroCarry, segment: int
) -> _Segments:
    """The segments at these positions, [rows, segments * time], for a model."""
    inputs, targets = inputs_and_targets(ids, at, params["output_bias"].shape[0])

    def cut(x: np.ndarray) -> Array:
        return jnp.asarray(x.reshape(len(at), -1, segment).swapaxes(0, 1))

    resets = zero_carry.at(at, inputs)
    return _Segments(cut(inputs), cut(targets), None if resets is None else cut(resets))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def _add_squares(
    config: ModelConfig, params: PyTree, carry: Carry, sums: PyTree, segments: _Segments
) -> tuple[Carry, PyTree]:
    """The carry after these segments, and the sums with the squares of their gradients."""

    def add(loop: tuple[Carry, PyTree], segment: _Segments) -> tuple[Any, None]:
        carry, sums = loop
        grads, (_, carry) = _grad(config, lambda *_: (), params, carry, segment)
        return (carry, jax.tree.map(lambda s, g: s + g * g, sums, grads)), None

    loop: tuple[Carry, PyTree] = jax.lax.scan(add, (carry, sums), segments)[0]
    return loop


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4))
def _learn(
    config: ModelConfig,
    measure: Measure,
    rule: UpdateRule,
    carry: Carry,
    params: PyTree,
    segments: _Segments,
) -> tuple[Carry, PyTree, PyTree]:
    """The carry and the weights after these segments, and what is measured before each update."""

    def update(theta: Array, trained: Array, pull: Array, rate: Array, grad: Array) -> Array:
        return theta + pull * (trained - theta) - rate * grad

    def learn(loop: tuple[Carry, PyTree], segment: _Segments) -> tuple[Any, PyTree]:
        carry, params = loop
        grads, (values, carry) = _grad(config, measure, params, carry, segment)
        return (carry, jax.tree.map(update, params, *rule, grads)), values

    (carry, params), values = jax.lax.scan(learn, (carry, params), segments)
    return carry, params, values


def _grad(
    config: ModelConfig, measure: Measure, params: PyTree, carry: Carry, segment: _Segments
) -> tuple[PyTree, tuple[PyTree, Carry]]:
    """The gradient of a segment's mean loss, what is measured on it, and the carry after it."""
    inputs, targets, resets = segment

    def loss(params: PyTree) -> tuple[Scalar, Any]:
        logits, after = network_logits(config, params, inputs, carry, resets=resets)
        nats = softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.mean(nats), (measure(logits, targets), after)

    result: tuple[PyTree, tuple[PyTree, Carry]] = jax.grad(loss, has_aux=True)(params)
    return result
