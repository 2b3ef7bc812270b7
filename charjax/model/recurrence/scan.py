"""The recurrence as `nn.scan` over the cell: the reference for all other implementations."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from charjax.model.cells import CELLS
from charjax.model.matmul import dot
from charjax.model.recurrence.base import Layer, Operands, Result, Weights
from charjax.types import LayerCarry


def supports(layer: Layer) -> str:
    """Always "": this implementation runs every layer on every device."""
    del layer
    return ""


def run(cell: str, dtype: DTypeLike, operands: Operands) -> Result:
    """Runs one layer over a sequence; see `charjax.model.recurrence.api.run`."""
    inputs, weights, carry, resets = operands
    igates = inputs.igates if inputs.tokens is None else inputs.igates[:, inputs.tokens]
    scanned = nn.scan(_Step, in_axes=(0, nn.broadcast, 0), variable_broadcast=False)
    # It has no parameters, so it need not be a submodule of the calling layer.
    layer = scanned(cell, dtype, parent=None)
    steps: tuple[LayerCarry, Array] = layer.apply(  # type: ignore[assignment]
        {}, carry, jnp.moveaxis(igates, 0, -1), weights, resets
    )
    last, outputs = steps
    return jnp.moveaxis(outputs, -1, 0), last


class _Step(nn.Module):
    """One time step of a cell."""

    cell: str
    dtype: DTypeLike

    def __call__(
        self,
        carry: LayerCarry,
        igates: Float[Array, "batch gates"],
        weights: Weights,
        reset: Bool[Array, " batch"] | None,
    ) -> tuple[LayerCarry, Float[Array, "batch hidden"]]:
        cell = CELLS[self.cell]
        if reset is not None:
            carry = tuple(jnp.where(reset[:, None], 0.0, state) for state in carry)
        h = carry[0]
        if weights.mogrifier is not None:
            igates, h = weights.mogrifier.gate(igates, h, self.dtype)
        hgates = jnp.split(dot(h, weights.kernel, self.dtype), cell.gates, axis=1)
        if weights.bias is not None:
            hgates[-1] += weights.bias[None]
        by_gate = tuple(jnp.split(igates, cell.gates, axis=1))
        carry, _ = cell.forward(by_gate, tuple(hgates), carry)
        return carry, carry[0]
