"""Scheduled sampling: inputs are gradually replaced by predictions (Bengio et al. 2015).

With teacher forcing alone a model never reads its own errors in training, but it does when it
generates text. No gradient flows through a sampled input. So the inputs are sampled first, one
character after the other; then the training step reads the mixed text like any other.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from charjax.config import ModelConfig, TrainConfig
from charjax.model.decode import DecodeState, decode_state, decode_step, reset_state
from charjax.model.decode_weights import Activations, decode_weights, mask_token
from charjax.model.network import RowKeys
from charjax.runtime.keys import indexed_key
from charjax.types import Carry, Count, PyTree, Scalar, Tokens


def sampling_rate(config: TrainConfig, at_step: Count) -> Scalar:
    """The probability of a sampled input: linear from 0 over `scheduled_ramp` steps."""
    done = jnp.float32(at_step) / config.scheduled_ramp  # so that jax_enable_x64 changes no draw
    return config.scheduled_sampling * jnp.minimum(done, 1.0)


def mix_inputs(
    config: ModelConfig,
    params: PyTree,
    inputs: Tokens,
    carry: Carry,
    row_keys: RowKeys,
    rate: Scalar,
    boundary_id: int | None = None,
) -> Tokens:
    """Replaces some inputs by samples from the model's own predictions.

    Args:
      config: the architecture.
      params: of a `CharRNN`; it predicts without dropout.
      inputs: int32 [batch, time], the true tokens. The first of each sequence is kept.
      carry: the recurrent state before the inputs.
      row_keys: one key per sequence, so that its samples depend on no other sequence.
      rate: the probability that an input is replaced.
      boundary_id: the document boundary. It is neither replaced nor sampled, so documents start
        at the same positions as in the true inputs.
    """
    weights = decode_weights(config, params, layout="feature_major")
    first, others = inputs[:, :1], inputs[:, 1:]
    x, state = weights.lookup(first[:, 0]), decode_state(weights, carry)
    if boundary_id is not None:
        weights = mask_token(weights, boundary_id)
        state = reset_state(weights, state, first[:, 0] == boundary_id)

    def advance(
        previous: tuple[Activations, DecodeState], scanned: tuple[Array, Array]
    ) -> tuple[tuple[Activations, DecodeState], Array]:
        (x, state), (true_token, position) = previous, scanned
        keys = jax.vmap(indexed_key, (0, None))(row_keys, position)
        choice_keys, token_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        logits, state = decode_step(config, weights, x, state)
        is_sampled = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(choice_keys)
        if boundary_id is not None:
            is_boundary = true_token == boundary_id
            is_sampled = is_sampled & ~is_boundary
            state = reset_state(weights, state, is_boundary)
        token = jnp.where(is_sampled, _sample(token_keys, logits), true_token)
        return (weights.lookup(token), state), token

    positions = jnp.arange(1, inputs.shape[1])
    _, mixed = jax.lax.scan(advance, (x, state), (others.T, positions))
    return jnp.concatenate([first, mixed.T], axis=1)


def _sample(keys: RowKeys, logits: Array) -> Int[Array, " batch"]:
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
