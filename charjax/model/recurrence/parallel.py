"""The recurrence of cells without a recurrent kernel: h' = a * h + b, with a hand-written VJP.

The coefficients a and b of all positions are computed at once; with a table, once for each token.
What is left is a scan over elementwise steps: on a CPU one after the other, elsewhere
`associative_scan`, whose depth is the logarithm of the length. The gradient is the same scan in
reverse.

The scan multiplies plainly, not in log space: a is in [0, 1], so that products only shrink.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from charjax.model.cells import CELLS, Coefficients
from charjax.model.matmul import dot_trailing, one_hot
from charjax.model.recurrence.base import Inputs, Layer, Operands, Outputs, Result, Weights


def supports(layer: Layer) -> str:
    """Why it cannot run a layer: only if its cell has a recurrent kernel."""
    has_kernel = CELLS[layer.cell].has_recurrent_kernel
    return f"config.model.cell={layer.cell} has a recurrent kernel" if has_kernel else ""


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run(cell: str, dtype: DTypeLike, operands: Operands) -> Result:
    """Runs one layer over a sequence; see `charjax.model.recurrence.api.run`."""
    return _forward(cell, dtype, operands)[0]


def _forward(cell: str, dtype: DTypeLike, operands: Operands) -> tuple[Result, Any]:
    del dtype  # no matmul
    inputs, _, (carry,), resets = operands
    a, b = (_at_positions(c, inputs) for c in _coefficients(cell, inputs.igates))
    first = carry.T
    if resets is not None:
        a, first = jnp.where(resets, 0.0, a), jnp.where(resets[0], 0.0, first)
    outputs = _scan(a, b, first)
    return (outputs, (outputs[:, -1].T,)), (operands, outputs)


def _backward(
    cell: str, dtype: DTypeLike, saved: tuple[Operands, Outputs], grads: Result
) -> tuple[Operands]:
    (inputs, weights, (carry,), resets), outputs = saved
    d_outputs, (d_last,) = grads
    (table_a, _), vjp = jax.vjp(partial(_coefficients, cell), inputs.igates)
    a = _at_positions(table_a, inputs)
    h_before = jnp.concatenate([carry.T[:, None], outputs[:, :-1]], axis=1)
    if resets is not None:
        a, h_before = (jnp.where(resets, 0.0, x) for x in (a, h_before))
    # A state's gradient is d_output + a_after * that of the next state; after the last, d_last.
    a_after = jnp.concatenate([a[:, 1:], jnp.ones_like(a[:, :1])], axis=1)
    db = _scan(a_after, d_outputs, d_last.T, reverse=True)
    da = db * h_before
    d_coefficients = da, db
    if inputs.tokens is not None:
        ones = one_hot(inputs.tokens, inputs.igates.shape[1], dtype)
        d_coefficients = dot_trailing(da, ones, dtype), dot_trailing(db, ones, dtype)
    (d_igates,) = vjp(d_coefficients)
    d_inputs = inputs.cotangent(d_igates, None)
    d_weights = Weights(jnp.zeros_like(weights.kernel), None)
    return (Operands(d_inputs, d_weights, ((a[:, 0] * db[:, 0]).T,)),)


run.defvjp(_forward, _backward)


def _coefficients(cell: str, igates: Float[Array, " gates *positions"]) -> Coefficients:
    coefficients = CELLS[cell].coefficients
    assert coefficients is not None
    return coefficients(tuple(jnp.split(igates, CELLS[cell].gates)))


def _at_positions(x: Float[Array, " hidden *positions"], inputs: Inputs) -> Outputs:
    return x if inputs.tokens is None else x[:, inputs.tokens]


def _scan(
    a: Outputs, b: Outputs, first: Float[Array, "hidden batch"], *, reverse: bool = False
) -> Outputs:
    """All h of h' = a * h + b, from the state `first` on; in reverse, from the last position."""
    if jax.default_backend() == "cpu":
        return _scan_in_turn(a, b, first, reverse)
    edge = -1 if reverse else 0
    b = b.at[:, edge].add(a[:, edge] * first)
    composed: Coefficients = jax.lax.associative_scan(_compose, (a, b), reverse=reverse, axis=1)
    return composed[1]


def _scan_in_turn(
    a: Outputs, b: Outputs, first: Float[Array, "hidden batch"], reverse: bool
) -> Outputs:
    def step(h: Array, at: Coefficients) -> tuple[Array, Array]:
        h = at[0] * h + at[1]
        return h, h

    coefficients = jnp.moveaxis(a, 1, 0), jnp.moveaxis(b, 1, 0)
    states: Array = jax.lax.scan(step, first, coefficients, reverse=reverse)[1]
    return jnp.moveaxis(states, 0, 1)


def _compose(first: Coefficients, second: Coefficients) -> Coefficients:
    """The coefficients of two steps as those of one."""
    (a1, b1), (a2, b2) = first, second
    return a2 * a1, a2 * b1 + b2
