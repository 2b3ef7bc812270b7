"""The network one character at a time, in one pass over its weights: what sampling runs.

The product of a state with its own recurrent kernel does not depend on the
next character. So each layer multiplies its new state once, by the recurrent
kernel and the kernel of whatever comes next (the layer above, or the logits)
side by side, and keeps the recurrent half for the next character.

Lanes lie in rows, which a CPU multiplies fastest while they are few, or in columns,
as in training, which it does when they are many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from charjax.config import ModelConfig
from charjax.model.cells import CELLS
from charjax.model.matmul import dot, look_up, rounded
from charjax.types import Carry, PyTree

# Of each lane, some features: [batch, features], or [features, batch] in columns.
Lanes: TypeAlias = Float[Array, "_ _"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("table", "kernels", "biases"),
    meta_fields=("columns",),
)
@dataclass(frozen=True)
class StepWeights:
    """Parameters rearranged for stepping.

    Attributes:
      table: float32 [vocab, gates], the first layer's input share of every symbol.
      kernels: a layer, [hidden, gates + onward], in the compute dtype.
      biases: a layer, float32 [gates + onward].
      columns: whether lanes lie in columns; then table and kernels are transposed.
    """

    table: Float[Array, "_ _"]
    kernels: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, " _"], ...]
    columns: bool

    @property
    def symbols(self) -> int:
        """The size of the vocabulary."""
        return self.table.shape[1 if self.columns else 0]

    @property
    def gates(self) -> int:
        """The gates of a layer, times hidden."""
        return self.table.shape[0 if self.columns else 1]

    def select(self, tokens: Int[Array, " batch"]) -> Lanes:
        """The first layer's input share of one character a lane."""
        return look_up(self.table, tokens) if self.columns else self.table[tokens]

    def product(self, layer: int, output: Lanes) -> Lanes:
        """A layer's output times its kernel, and the bias."""
        kernel, bias = self.kernels[layer], self.biases[layer]
        if self.columns:
            return dot(kernel, output, kernel.dtype) + bias[:, None]
        return dot(output, kernel, kernel.dtype) + bias[None]

    def split(self, lanes: Lanes, at: int | Sequence[int]) -> list[Lanes]:
        """Cuts features, as `jnp.split` does."""
        return jnp.split(lanes, at, axis=0 if self.columns else 1)


class StepState(NamedTuple):
    """The carry, and each layer's share of its next gates, float32.

    Both lie as their weights want: [batch, features], or [features, batch] in columns.
    """

    carry: tuple[tuple[Lanes, ...], ...]
    shares: tuple[Lanes, ...]


def step_weights(config: ModelConfig, params: PyTree, *, columns: bool = False) -> StepWeights:
    """The parameters of a `CharRNN`, rearranged, for lanes in rows or in columns."""
    dtype = jnp.dtype(config.dtype)
    layers = [params[f"layer_{i}"] for i in range(config.layers)]
    kernel = layers[0]["kernel"]
    # Rounded, a kernel is its own product with one-hot rows.
    table = dot(params["embedding"], kernel, dtype) if config.embed else rounded(kernel, dtype)
    table = table + layers[0]["bias"][None]
    onward = [(above["kernel"], above["bias"]) for above in layers[1:]]
    onward.append((params["output_kernel"], params["output_bias"]))
    kernels, biases = [], []
    for layer, (kernel, bias) in zip(layers, onward, strict=True):
        recurrent = layer["recurrent"]["kernel"]
        kernels.append(jnp.concatenate([recurrent, kernel], axis=1).astype(dtype))
        biases.append(jnp.concatenate([_recurrent_bias(layer["recurrent"]), bias]))
    if columns:
        table, *kernels = (a.T for a in (table, *kernels))
    return StepWeights(table, tuple(kernels), tuple(biases), columns)


def without_symbol(weights: StepWeights, symbol: int) -> StepWeights:
    """The same with one symbol's logit at minus infinity."""
    *below, last = weights.biases
    last = last.at[last.size - weights.symbols + symbol].set(-jnp.inf)
    return replace(weights, biases=(*below, last))


def step_state(weights: StepWeights, carry: Carry) -> StepState:
    """The stepping state that continues from a carry, [batch, hidden] as the network has it."""
    if weights.columns:
        carry = jax.tree.map(jnp.transpose, carry)
    shares = tuple(
        weights.split(weights.product(layer, state[0]), [weights.gates])[0]
        for layer, state in enumerate(carry)
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
    cell = CELLS[config.cell]
    x = weights.select(tokens)
    carry, shares = [], []
    for layer in range(config.layers):
        inputs, recurrent = (
            tuple(weights.split(share, cell.gates)) for share in (x, state.shares[layer])
        )
        after, _ = cell.forward(inputs, recurrent, state.carry[layer])
        share, x = weights.split(weights.product(layer, after[0]), [weights.gates])
        shares.append(share)
        carry.append(after)
    return x.T if weights.columns else x, StepState(tuple(carry), tuple(shares))


def _recurrent_bias(recurrent: dict[str, Any]) -> Float[Array, " gates"]:
    """The bias of the state's share, zero but for the last gate of cells that have one."""
    hidden, gates = recurrent["kernel"].shape
    if "bias" not in recurrent:
        return jnp.zeros(gates)
    return jnp.concatenate([jnp.zeros(gates - hidden), recurrent["bias"]])
