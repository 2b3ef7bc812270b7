"""The recurrence compiled for this processor: the fast one's loops in C, see `kernels/`.

Equal in value and gradient to the fast recurrence, but for the order of sums. After the loops,
the gradients of the recurrent kernel and of a table are taken over all time steps at once, in C,
too; the input's share of the gates before them is XLA's.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from charjax.errors import InputError
from charjax.model.cells import CELLS
from charjax.model.matmul import int_cotangent
from charjax.model.recurrence.base import (
    Inputs,
    Layer,
    Outputs,
    Table,
    Weights,
    input_grad,
    with_candidate,
)
from charjax.model.recurrence.c.build import BACKWARD, FORWARD, GRADIENT, Absent, Kernels, load
from charjax.types import LayerCarry


class _Residuals(NamedTuple):
    inputs: Inputs
    weights: Weights
    begun: tuple[Float[Array, "hidden batch"], ...]
    outputs: Outputs
    before: Float[Array, "hidden time batch"]
    saved: Float[Array, "time hidden kept batch"]


def supports(layer: Layer) -> str:
    """Why the kernels cannot run a layer here; "" if they can."""
    if layer.cell not in _KEPT:
        return f"it has no cell {layer.cell}"
    kernels = kernels_for(layer.dtype)
    return kernels.reason if isinstance(kernels, Absent) else ""


def run(
    cell: str, dtype: DTypeLike, inputs: Inputs, weights: Weights, carry: LayerCarry
) -> tuple[Outputs, LayerCarry]:
    """One layer over a sequence; see `charjax.model.recurrence.api.run`."""
    kernels = kernels_for(dtype)
    if isinstance(kernels, Absent):
        raise InputError(f"config.model.recurrence=c: {kernels.reason}")
    result: tuple[Outputs, LayerCarry] = recur(cell, kernels, dtype, inputs, weights, carry)
    return result


def kernels_for(dtype: DTypeLike) -> Kernels | Absent:
    """The kernels of this process for products of operands of this dtype."""
    kernels = load()
    if isinstance(kernels, Kernels) and not kernels.takes(dtype):
        return Absent(f"the processor has no products of {jnp.dtype(dtype).name}")
    return kernels


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def recur(
    cell: str,
    kernels: Kernels,
    dtype: DTypeLike,
    inputs: Inputs,
    weights: Weights,
    carry: LayerCarry,
) -> tuple[Outputs, LayerCarry]:
    """One layer over a sequence.

    Args:
      cell: a name in `CELLS`.
      kernels: of this processor.
      dtype: of the products' operands; sums, gates and state are float32.
      inputs: the input's share of the gates.
      weights: the recurrent parameters.
      carry: the state before the first character, float32 [batch, hidden] each.

    Returns:
      The outputs, float32 [hidden, time, batch], and the carry after the last character.
    """
    return _run(cell, kernels, dtype, inputs, weights, carry, keep=False)[0]


def _forward(
    cell: str,
    kernels: Kernels,
    dtype: DTypeLike,
    inputs: Inputs,
    weights: Weights,
    carry: LayerCarry,
) -> tuple[tuple[Outputs, LayerCarry], _Residuals]:
    return _run(cell, kernels, dtype, inputs, weights, carry, keep=True)


def _run(
    cell: str,
    kernels: Kernels,
    dtype: DTypeLike,
    inputs: Inputs,
    weights: Weights,
    carry: LayerCarry,
    *,
    keep: bool,
) -> tuple[tuple[Outputs, LayerCarry], _Residuals]:
    begun = tuple(part.T for part in carry)
    if isinstance(inputs, Table):
        # What runs in C takes a symbol for an address.
        tokens = jnp.clip(inputs.tokens, 0, inputs.igates.shape[1] - 1)
        inputs, columns = inputs._replace(tokens=tokens), inputs.igates
        time, batch = tokens.shape
    else:
        tokens = jnp.zeros(0, jnp.int32)
        _, time, batch = inputs.igates.shape
        columns = _flat(inputs.igates)
    hidden = weights.kernel.shape[0]
    stack = (hidden, time, batch)
    number = jnp.float32
    outputs, h, c, before, saved, _ = _call(
        FORWARD,
        (
            (stack, number),
            ((hidden, batch), number),
            ((hidden, batch) if len(begun) > 1 else (0,), number),
            (stack if keep else (0,), dtype),
            (
                (time, _KEPT[cell] * hidden, kernels.padded(batch))
                if keep and _KEPT[cell]
                else (0,),
                number,
            ),
            ((kernels.forward_scratch(CELLS[cell].gates, hidden, batch, dtype),), jnp.uint8),
        ),
        weights.kernel,
        jnp.zeros(0) if weights.bias is None else weights.bias,
        columns,
        tokens,
        *_pair(begun),
    )
    last = (h.T, c.T)[: len(begun)]
    return (outputs, last), _Residuals(inputs, weights, begun, outputs, before, saved)


def _backward(
    cell: str,
    kernels: Kernels,
    dtype: DTypeLike,
    res: _Residuals,
    grads: tuple[Outputs, LayerCarry],
) -> tuple[Inputs, Weights, LayerCarry]:
    d_outputs, d_last = grads
    hidden, time, batch = d_outputs.shape
    gates, number = CELLS[cell].gates, jnp.float32
    reset_after = CELLS[cell].reset_after
    d_u, own, d_bias, d_h, d_c, _ = _call(
        BACKWARD,
        (
            ((gates * hidden, time, batch), dtype),
            ((hidden, time, batch) if reset_after else (0,), dtype),
            ((hidden, kernels.padded(batch)) if reset_after else (0,), number),
            ((hidden, batch), number),
            ((hidden, batch) if len(d_last) > 1 else (0,), number),
            ((kernels.backward_scratch(gates, hidden, batch, dtype),), jnp.uint8),
        ),
        res.weights.kernel,
        *_pair(res.begun),
        res.outputs,
        res.saved,
        d_outputs,
        *_pair(tuple(part.T for part in d_last)),
    )
    own = own if reset_after else None
    if isinstance(res.inputs, Table):
        d_kernel, d_columns = _gradients(kernels, res.before, d_u, res.inputs)
        if own is not None:
            own = _gradients(kernels, res.before[:0], own, res.inputs)[1]
        d_inputs: Inputs = Table(with_candidate(d_columns, own), int_cotangent(res.inputs.tokens))
    else:
        d_kernel, _ = _gradients(kernels, res.before, d_u)
        d_inputs = input_grad(res.inputs, d_u, own, dtype)
    d_weights = Weights(d_kernel, jnp.sum(d_bias, axis=1) if reset_after else None)
    return d_inputs, d_weights, (d_h.T, d_c.T)[: len(d_last)]


recur.defvjp(_forward, _backward)

_KEPT = {"rnn": 0, "gru": 4, "lstm": 5}  # numbers of a unit for the way back


def _gradients(
    kernels: Kernels,
    before: Float[Array, "hidden time batch"],
    d_u: Float[Array, "gates time batch"],
    table: Table | None = None,
) -> tuple[Float[Array, "hidden gates"], Float[Array, "gates vocab"]]:
    """Sums over all positions: `before @ d_u.T`, and `d_u` added up by symbol, if there is a table.

    The second is what `dot_trailing` with `one_hot` is, without its multiplications by zero.
    """
    before, d_u = _flat(before), _flat(d_u)
    (rows, positions), columns = before.shape, len(d_u)
    panels = kernels.padded(columns) // kernels.lanes
    symbols = 0 if table is None else table.igates.shape[1]
    product, by_symbol, _ = _call(
        GRADIENT,
        (
            ((rows, columns), jnp.float32),
            ((panels, symbols, kernels.lanes), jnp.float32),
            ((kernels.gradient_scratch(rows, positions, d_u.dtype),), jnp.uint8),
        ),
        before,
        d_u,
        jnp.zeros(0, jnp.int32) if table is None else table.tokens.reshape(-1),
    )
    by_symbol = by_symbol.swapaxes(1, 2).reshape(panels * kernels.lanes, symbols)
    return product, by_symbol[:columns]


def _flat(stack: Float[Array, "features time batch"]) -> Float[Array, "features positions"]:
    features, time, batch = stack.shape
    return stack.reshape(features, time * batch)


def _pair(carry: tuple[Array, ...]) -> tuple[Array, Array]:
    return (carry[0], carry[1] if len(carry) > 1 else jnp.zeros(0))


def _call(name: str, results: Any, *arguments: Array) -> Any:
    shapes = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results)
    return jax.ffi.ffi_call(name, shapes, vmap_method="sequential")(*arguments)
