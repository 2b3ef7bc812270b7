"""The recurrence by `nn.scan` over the cell: the reference, written to be read."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from charjax.model.cells import CELLS
from charjax.model.matmul import dot
from charjax.model.recurrence.base import Inputs, Layer, Outputs, Table, Weights
from charjax.types import LayerCarry


def supports(layer: Layer) -> str:
    """It runs every layer on every device."""
    del layer
    return ""


def run(
    cell: str, dtype: DTypeLike, inputs: Inputs, weights: Weights, carry: LayerCarry
) -> tuple[Outputs, LayerCarry]:
    """One layer over a sequence.

    Args:
      cell: a name in `CELLS`.
      dtype: of the matmul operands; sums, gates and state are float32.
      inputs: the input gates.
      weights: the recurrent parameters.
      carry: the state before the first character, float32 [batch, hidden] each.

    Returns:
      The outputs, float32 [hidden, time, batch], and the carry after the last character.
    """
    igates = inputs.igates[:, inputs.tokens] if isinstance(inputs, Table) else inputs.igates
    scanned = nn.scan(_Step, in_axes=(0, nn.broadcast), variable_broadcast=False)
    # parent=None: no submodule of whoever calls, since it has no parameters of its own.
    layer = scanned(cell, dtype, parent=None)
    steps: tuple[LayerCarry, Array] = layer.apply(  # type: ignore[assignment]
        {}, carry, jnp.moveaxis(igates, 0, -1), weights
    )
    last, outputs = steps
    return jnp.moveaxis(outputs, -1, 0), last


class _Step(nn.Module):
    """One time step of a cell."""

    cell: str
    dtype: DTypeLike

    def __call__(
        self, carry: LayerCarry, igates: Float[Array, "batch gates"], weights: Weights
    ) -> tuple[LayerCarry, Float[Array, "batch hidden"]]:
        cell = CELLS[self.cell]
        hgates = jnp.split(dot(carry[0], weights.kernel, self.dtype), cell.gates, axis=1)
        if weights.bias is not None:
            hgates[-1] += weights.bias[None]
        by_gate = tuple(jnp.split(igates, cell.gates, axis=1))
        carry, _ = cell.forward(by_gate, tuple(hgates), carry)
        return carry, carry[0]
