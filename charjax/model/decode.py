"""The network one character at a time, in one pass over its weights: what sampling runs.

The product of a state with its own recurrent kernel does not depend on the
next character. So each layer multiplies its new state once, by the recurrent
kernel and the kernel of whatever comes next (the layer above, or the logits)
side by side, and keeps the recurrent half for the next character.

Lanes lie in rows, which XLA on a CPU multiplies fastest while they are few, or in columns,
as in training, which it does when they are many, or when there is one. Packed kernels take
them in rows, any number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from charjax.config import ModelConfig
from charjax.model.cells import CELLS
from charjax.model.matmul import dot, lookup, rounded, row_major
from charjax.model.quantization import Units, quantize
from charjax.model.recurrence.c.build import Library
from charjax.model.recurrence.c.packed import Packed, pack
from charjax.types import Carry, Logits, PyTree, Tokens

# Of each lane, some features: [batch, features], or [features, batch] in columns.
Lanes: TypeAlias = Float[Array, "_ _"]
# How lanes lie: in rows, in columns, or as the only column.
Layout: TypeAlias = Literal["rows", "columns", "column"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("table", "kernels", "biases", "units"),
    meta_fields=("layout",),
)
@dataclass(frozen=True)
class DecodeWeights:
    """Parameters rearranged for stepping.

    Attributes:
      table: float32 [vocab, gates], the first layer's input share of every symbol;
        transposed for several lanes in columns.
      kernels: a layer, [hidden, gates + onward], in the compute dtype; transposed for
        lanes in columns. Or packed, for lanes in rows.
      biases: a layer, float32 [gates + onward].
      units: a layer, of kernels that are whole numbers; else None.
      layout: how lanes lie.
    """

    table: Float[Array, "_ _"]
    kernels: tuple[Float[Array, "_ _"] | Packed, ...]
    biases: tuple[Float[Array, " _"], ...]
    units: tuple[Units | None, ...]
    layout: Layout

    @property
    def columns(self) -> bool:
        """Whether lanes lie in columns, one or several."""
        return self.layout != "rows"

    @property
    def symbols(self) -> int:
        """The size of the vocabulary."""
        return self.table.shape[1 if self.layout == "columns" else 0]

    @property
    def gates(self) -> int:
        """The gates of a layer, times hidden."""
        return self.table.shape[0 if self.layout == "columns" else 1]

    def select(self, tokens: Int[Array, " batch"]) -> Lanes:
        """The first layer's input share of one character a lane, for `step`."""
        if self.layout == "columns":
            return lookup(self.table, tokens)
        rows = self.table[tokens]
        return rows.T if self.columns else rows

    def product(self, layer: int, output: Lanes) -> Lanes:
        """A layer's output times its kernel, and the bias."""
        kernel, bias, units = self.kernels[layer], self.biases[layer], self.units[layer]
        if units is not None:
            output = jnp.round(output * units.state)
        if isinstance(kernel, Packed):
            product = kernel.multiply(output)
        else:
            operands = (kernel, output) if self.columns else (output, kernel)
            product = dot(*operands, kernel.dtype)
        if units is not None:
            product *= self._across(units.product)
        return product + self._across(bias)

    def _across(self, features: Float[Array, " _"]) -> Lanes:
        """One number a feature, for all lanes."""
        return features[:, None] if self.columns else features[None]

    def split(self, lanes: Lanes, at: int | Sequence[int]) -> list[Lanes]:
        """Cuts features, as `jnp.split` does."""
        return jnp.split(lanes, at, axis=0 if self.columns else 1)


class DecodeState(NamedTuple):
    """The carry, and each layer's share of its next gates, float32.

    Both lie as their weights want: [batch, features], or [features, batch] in columns.
    """

    carry: tuple[tuple[Lanes, ...], ...]
    shares: tuple[Lanes, ...]


def decode_weights(
    config: ModelConfig,
    params: PyTree,
    *,
    layout: Layout = "rows",
    operands: str = "",
    packed: Library | None = None,
) -> DecodeWeights:
    """The parameters of a `CharRNN`, rearranged.

    Args:
      config: the architecture; of dtype "int8", kernels become whole numbers.
      params: float32.
      layout: how lanes are going to lie.
      operands: the dtype of the kernels of whole numbers, float32 or bfloat16, which hold
        them alike; where they are none it is the config's.
      packed: what to pack kernels for, whose lanes lie in rows; None: not to.
    """
    whole = config.dtype == "int8"
    dtype = jnp.dtype("float32" if whole else config.dtype)
    layers = [params[f"layer_{i}"] for i in range(config.layers)]
    kernel = layers[0]["kernel"]
    # Rounded, a kernel is its own product with one-hot rows.
    table = dot(params["embedding"], kernel, dtype) if config.embed else rounded(kernel, dtype)
    table = table + layers[0]["bias"][None]
    onward = [(above["kernel"], above["bias"]) for above in layers[1:]]
    onward.append((params["output_kernel"], params["output_bias"]))
    kernels: list[Float[Array, "_ _"] | Packed] = []
    biases, units = [], []
    for layer, (kernel, bias) in zip(layers, onward, strict=True):
        recurrent = layer["recurrent"]["kernel"]
        join_processes = jnp.concatenate([recurrent, kernel], axis=1)
        join_processes, unit = quantize(join_processes) if whole else (join_processes, None)
        if packed:
            kernels.append(pack(packed, join_processes, operands or dtype))
        else:
            join_processes = join_processes.astype(operands or dtype)
            kernels.append(join_processes if layout == "rows" else row_major(join_processes.T))
        biases.append(jnp.concatenate([_recurrent_bias(layer["recurrent"]), bias]))
        units.append(unit)
    if layout == "columns":
        table = row_major(table.T)
    return DecodeWeights(table, tuple(kernels), tuple(biases), tuple(units), layout)


def mask_token(weights: DecodeWeights, symbol: int) -> DecodeWeights:
    """The same with one symbol's logit at minus infinity."""
    *below, last = weights.biases
    last = last.at[last.size - weights.symbols + symbol].set(-jnp.inf)
    return replace(weights, biases=(*below, last))


def decode_state(weights: DecodeWeights, carry: Carry) -> DecodeState:
    """The stepping state that continues from a carry, [batch, hidden] as the network has it."""
    if weights.columns:
        carry = jax.tree.map(jnp.transpose, carry)
    shares = tuple(
        weights.split(weights.product(layer, state[0]), [weights.gates])[0]
        for layer, state in enumerate(carry)
    )
    return DecodeState(carry, shares)


def step(
    config: ModelConfig, weights: DecodeWeights, x: Lanes, state: DecodeState
) -> tuple[Float[Array, "batch vocab"], DecodeState]:
    """Reads one character a lane.

    Args:
      config: the architecture.
      weights: of the model.
      x: `weights.select` of the characters. In a loop it belongs to what is carried: XLA on a
        CPU computes gates several times as slowly where it looks up their input among them.
      state: before them.

    Returns:
      Float32 logits of the character after each, and the next state. Both equal the
      network's on the same text up to rounding.
    """
    cell = CELLS[config.cell]
    carry, shares = [], []
    for layer in range(config.layers):
        inputs, recurrent = (
            tuple(weights.split(share, cell.gates)) for share in (x, state.shares[layer])
        )
        after, _ = cell.forward(inputs, recurrent, state.carry[layer])
        share, x = weights.split(weights.product(layer, after[0]), [weights.gates])
        shares.append(share)
        carry.append(after)
    return x.T if weights.columns else x, DecodeState(tuple(carry), tuple(shares))


def decode_sequence(
    config: ModelConfig, params: PyTree, tokens: Tokens, carry: Carry
) -> tuple[Logits, Carry]:
    """A chunk of characters, one after the other: what the network returns for them."""
    weights = decode_weights(config, params, layout="columns")

    def advance(state: DecodeState, tokens: Int[Array, " batch"]) -> tuple[DecodeState, Lanes]:
        logits, state = step(config, weights, weights.select(tokens), state)
        return state, logits

    last, logits = jax.lax.scan(advance, decode_state(weights, carry), tokens.T)
    return logits.swapaxes(0, 1), jax.tree.map(jnp.transpose, last.carry)


def _recurrent_bias(recurrent: dict[str, Any]) -> Float[Array, " gates"]:
    """The bias of the state's share, zero but for the last gate of cells that have one."""
    hidden, gates = recurrent["kernel"].shape
    if "bias" not in recurrent:
        return jnp.zeros(gates)
    return jnp.concatenate([jnp.zeros(gates - hidden), recurrent["bias"]])
