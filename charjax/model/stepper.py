"""The network one character at a time, in one pass over its weights: what sampling runs.

The product of a state with its own recurrent kernel does not depend on the
next character. So each layer multiplies its new state once, by the recurrent
kernel and the kernel of whatever comes next (the layer above, or the logits)
side by side, and keeps the recurrent half for the next character.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from charjax.config import ModelConfig
from charjax.model.cells import CELLS, split_rows
from charjax.model.matmul import dot, rounded
from charjax.types import Carry, PyTree


class StepWeights(NamedTuple):
    """Parameters rearranged for stepping.

    Attributes:
      table: float32 [vocab, gates], the first layer's input share of every symbol.
      kernels: a layer, [hidden, gates + onward], in the compute dtype.
      biases: a layer, float32 [gates + onward].
    """

    table: Float[Array, "vocab gates"]
    kernels: tuple[Float[Array, "hidden _"], ...]
    biases: tuple[Float[Array, " _"], ...]

    @property
    def symbols(self) -> int:
        """The size of the vocabulary."""
        return self.table.shape[0]


class StepState(NamedTuple):
    """The carry, and each layer's share of its next gates, float32 [batch, gates]."""

    carry: Carry
    shares: tuple[Float[Array, "batch gates"], ...]


def step_weights(config: ModelConfig, params: PyTree) -> StepWeights:
    """The parameters of a `CharRNN`, rearranged."""
    dtype = jnp.dtype(config.dtype)
    layers = [params[f"layer_{i}"] for i in range(config.layers)]
    kernel = layers[0]["kernel"]
    # Rounded, a kernel is its own product with one-hot rows.
    table = dot(params["embedding"], kernel, dtype) if config.embed else rounded(kernel, dtype)
    onward = [(above["kernel"], above["bias"]) for above in layers[1:]]
    onward.append((params["output_kernel"], params["output_bias"]))
    kernels, biases = [], []
    for layer, (kernel, bias) in zip(layers, onward, strict=True):
        recurrent = layer["recurrent"]["kernel"]
        kernels.append(jnp.concatenate([recurrent, kernel], axis=1).astype(dtype))
        biases.append(jnp.concatenate([_recurrent_bias(layer["recurrent"]), bias]))
    return StepWeights(table + layers[0]["bias"][None], tuple(kernels), tuple(biases))


def without_symbol(weights: StepWeights, symbol: int) -> StepWeights:
    """The same with one symbol's logit at minus infinity."""
    *below, last = weights.biases
    last = last.at[last.size - weights.symbols + symbol].set(-jnp.inf)
    return weights._replace(biases=(*below, last))


def step_state(config: ModelConfig, weights: StepWeights, carry: Carry) -> StepState:
    """The stepping state that continues from a carry."""
    gates = weights.table.shape[1]
    shares = tuple(
        dot(state[0], kernel[:, :gates], kernel.dtype) + bias[None, :gates]
        for state, kernel, bias in zip(carry, weights.kernels, weights.biases, strict=True)
    )
    return StepState(carry, shares)


def step(
    config: ModelConfig, weights: StepWeights, tokens: Int[Array, " batch"], state: StepState
) -> tuple[Float[Array, "batch vocab"], StepState]:
    """Reads one character a lane.

    Returns:
      Float32 logits of the character after it, and the next state. Both equal the
      network's on the same text up to rounding.
    """
    cell, gates = CELLS[config.cell], weights.table.shape[1]
    x = weights.table[tokens]
    carry, shares = [], []
    for layer in range(config.layers):
        after, _ = cell.forward(
            split_rows(cell, x), split_rows(cell, state.shares[layer]), state.carry[layer]
        )
        kernel = weights.kernels[layer]
        product = dot(after[0], kernel, kernel.dtype) + weights.biases[layer][None]
        shares.append(product[:, :gates])
        x = product[:, gates:]
        carry.append(after)
    return x, StepState(tuple(carry), tuple(shares))


def _recurrent_bias(recurrent: dict[str, Any]) -> Float[Array, " gates"]:
    """The bias of the state's share, zero but for the last gate of cells that have one."""
    hidden, gates = recurrent["kernel"].shape
    if "bias" not in recurrent:
        return jnp.zeros(gates)
    return jnp.concatenate([jnp.zeros(gates - hidden), recurrent["bias"]])
