"""Decoding one character at a time, in one pass over the weights.

The matmul of a state with its own recurrent kernel does not depend on the next character. So
each layer multiplies its new state once, by its recurrent kernel and the kernel of what comes
next (the layer above, or the logits) side by side, and keeps the hidden gates for the next step.

The state of a mogrifier has to wait for the next character. So its layers compute their gates in
the step that reads it, and only the last state is multiplied ahead, for the logits.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from charjax.config import ModelConfig
from charjax.model.cells import CELLS
from charjax.model.decode_weights import Activations, DecodeWeights, decode_weights
from charjax.types import Carry, Logits, PyTree, Resets, Tokens


class DecodeState(NamedTuple):
    """The state between two steps, float32 in the layout of the weights.

    Attributes:
      carry: of each layer.
      hgates: of each layer, the hidden gates of the next step.
    """

    carry: tuple[tuple[Activations, ...], ...]
    hgates: tuple[Activations, ...]


def decode_state(weights: DecodeWeights, carry: Carry) -> DecodeState:
    """The decoding state that continues from a network's carry."""
    if weights.features_first:
        carry = jax.tree.map(jnp.transpose, carry)
    hgates = tuple(
        weights.split(weights.matmul(layer, state[0]), [weights.gates])[0]
        for layer, state in enumerate(carry)
    )
    return DecodeState(carry, hgates)


def decode_step(
    config: ModelConfig, weights: DecodeWeights, igates: Activations, state: DecodeState
) -> tuple[Float[Array, "batch vocab"], DecodeState]:
    """Reads one token per sequence.

    Args:
      config: the architecture.
      weights: of the model.
      igates: `weights.lookup` of the tokens. A loop should carry them from one step to the
        next: XLA:CPU computes the gates several times as slowly with the look-up among them.
      state: before the tokens.

    Returns:
      The float32 logits of the next token and the state after these. Both equal the network's
      on the same text up to rounding (invariant 3 of CONTRIBUTING.md).
    """
    cell = CELLS[config.cell]
    carry, hgates = [], []
    x = igates
    for layer in range(config.layers):
        gates = x, state.hgates[layer]  # input gates, hidden gates
        if weights.mogrifiers:
            gates = weights.mogrify(layer, x, state.carry[layer][0])
        layer_igates, layer_hgates = (tuple(weights.split(g, cell.gates)) for g in gates)
        layer_carry, _ = cell.forward(layer_igates, layer_hgates, state.carry[layer])
        next_hgates, x = weights.split(weights.matmul(layer, layer_carry[0]), [weights.gates])
        if weights.mogrifiers and layer < config.layers - 1:
            x = layer_carry[0]
        hgates.append(next_hgates)
        carry.append(layer_carry)
    logits = x.T if weights.features_first else x
    return logits, DecodeState(tuple(carry), tuple(hgates))


def reset_state(
    weights: DecodeWeights, state: DecodeState, reset: Bool[Array, " batch"]
) -> DecodeState:
    """The state, for the sequences where `reset` is true that of a carry of zeros."""
    reset = reset if weights.features_first else reset[:, None]
    carry = jax.tree.map(lambda x: jnp.where(reset, 0.0, x), state.carry)
    hgates = tuple(
        jnp.where(reset, weights.hgates_bias(layer), x) for layer, x in enumerate(state.hgates)
    )
    return DecodeState(carry, hgates)


def decode_sequence(
    config: ModelConfig,
    params: PyTree,
    tokens: Tokens,
    carry: Carry,
    *,
    resets: Resets | None = None,
) -> tuple[Logits, Carry]:
    """Decodes a chunk of text, one token after the other; returns what `CharRNN.run` does."""
    weights = decode_weights(config, params, layout="feature_major")

    def advance(state: DecodeState, read: tuple[Array, Array | None]) -> tuple[DecodeState, Array]:
        token, reset = read
        if reset is not None:
            state = reset_state(weights, state, reset)
        logits, state = decode_step(config, weights, weights.lookup(token), state)
        return state, logits

    state = decode_state(weights, carry)
    read = tokens.T, None if resets is None else resets.T
    last, logits = jax.lax.scan(advance, state, read)
    return logits.swapaxes(0, 1), jax.tree.map(jnp.transpose, last.carry)
