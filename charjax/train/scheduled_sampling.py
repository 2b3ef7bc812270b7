"""Scheduled sampling: the model reads ever more of its own guesses (Bengio et al. 2015).

Training on true characters alone never shows a model its own mistakes, which is all
that it sees when it writes. No gradient flows through a guess; so the guesses can be
made first, one character after the other, and the training step then runs over the
mixed text as over any other.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from charjax.config import ModelConfig, TrainConfig
from charjax.model.decode import Activations, DecodeState, decode_state, decode_step, decode_weights
from charjax.runtime.keys import indexed_key
from charjax.types import Carry, Count, PRNGKey, PyTree, Scalar, Tokens


def sampling_rate(config: TrainConfig, at_step: Count) -> Scalar:
    """The probability that an input is a guess: from 0, linearly over the ramp."""
    return config.scheduled_sampling * jnp.minimum(at_step / config.scheduled_ramp, 1.0)


def mix_inputs(
    config: ModelConfig,
    params: PyTree,
    inputs: Tokens,
    carry: Carry,
    lane_keys: Key[Array, " batch"],
    share: Scalar,
) -> Tokens:
    """The inputs with some characters replaced by what the model would have written there.

    Args:
      config: the architecture.
      params: of a `CharRNN`; it guesses without dropout.
      inputs: the true characters. The first of each lane stays, nothing having guessed it.
      carry: the state before them.
      lane_keys: one a lane; what becomes of a lane depends on no other.
      share: the probability that a character is a guess.
    """
    weights = decode_weights(config, params, layout="feature_major")

    def advance(
        at: tuple[Activations, DecodeState], given: tuple[Array, Array]
    ) -> tuple[tuple[Activations, DecodeState], Array]:
        (x, state), (true, position) = at, given
        keys = jax.vmap(indexed_key, (0, None))(lane_keys, position)
        takes_guess, draws = jax.vmap(jax.random.split, out_axes=1)(keys)
        logits, state = decode_step(config, weights, x, state)
        guessed = jax.vmap(lambda key: jax.random.bernoulli(key, share))(takes_guess)
        token = jnp.where(guessed, _draw(draws, logits), true)
        return (weights.lookup(token), state), token

    first, others = inputs[:, :1], inputs[:, 1:]
    begun = (weights.lookup(first[:, 0]), decode_state(weights, carry))
    positions = jnp.arange(1, inputs.shape[1])
    _, mixed = jax.lax.scan(advance, begun, (others.T, positions))
    return jnp.concatenate([first, mixed.T], axis=1)


def _draw(keys: Key[Array, " batch"], logits: Array) -> Int[Array, " batch"]:
    def draw(key: PRNGKey, logits: Array) -> Array:
        return jax.random.categorical(key, logits).astype(jnp.int32)

    return jax.vmap(draw)(keys, logits)
