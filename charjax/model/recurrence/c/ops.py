"""The recurrence compiled for this processor: the fast one's loops in C, see `kernels/`.

Equal in value and gradient to the fast recurrence, but for the order of sums. After the loops,
the gradients of the recurrent kernel and of a table are taken over all time steps at once, in C,
too; the input's share of the gates before them is XLA's.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from charjax.model.cells import CELLS
from charjax.model.matmul import no_gradient
from charjax.model.recurrence.c.build import BACKWARD, FORWARD, GRADIENT, Absent, Kernels, load
from charjax.model.recurrence.xla import Outputs, Projected, Table, Weights, source_grad, with_own
from charjax.types import LayerCarry

Source: TypeAlias = Projected | Table


class _Residuals(NamedTuple):
    source: Source
    weights: Weights
    begun: tuple[Float[Array, "hidden batch"], ...]
    outputs: Outputs
    before: Float[Array, "hidden time batch"]
    saved: Float[Array, "time hidden kept batch"]


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
    source: Source,
    weights: Weights,
    carry: LayerCarry,
) -> tuple[Outputs, LayerCarry]:
    """One layer over a sequence.

    Args:
      cell: a name in `CELLS`.
      kernels: of this processor.
      dtype: of the products' operands; sums, gates and state are float32.
      source: the input's share of the gates.
      weights: the recurrent parameters.
      carry: the state before the first character, float32 [batch, hidden] each.

    Returns:
      The outputs, float32 [hidden, time, batch], and the carry after the last character.
    """
    return _run(cell, kernels, dtype, source, weights, carry, keep=False)[0]


def _forward(
    cell: str,
    kernels: Kernels,
    dtype: DTypeLike,
    source: Source,
    weights: Weights,
    carry: LayerCarry,
) -> tuple[tuple[Outputs, LayerCarry], _Residuals]:
    return _run(cell, kernels, dtype, source, weights, carry, keep=True)


def _run(
    cell: str,
    kernels: Kernels,
    dtype: DTypeLike,
    source: Source,
    weights: Weights,
    carry: LayerCarry,
    *,
    keep: bool,
) -> tuple[tuple[Outputs, LayerCarry], _Residuals]:
    begun = tuple(part.T for part in carry)
    if isinstance(source, Table):
        # What runs in C takes a symbol for an address.
        tokens = jnp.clip(source.tokens, 0, source.columns.shape[1] - 1)
        source, columns = source._replace(tokens=tokens), source.columns
        time, batch = tokens.shape
    else:
        tokens = jnp.zeros(0, jnp.int32)
        _, time, batch = source.columns.shape
        columns = _flat(source.columns)
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
    return (outputs, last), _Residuals(source, weights, begun, outputs, before, saved)


def _backward(
    cell: str,
    kernels: Kernels,
    dtype: DTypeLike,
    res: _Residuals,
    grads: tuple[Outputs, LayerCarry],
) -> tuple[Source, Weights, LayerCarry]:
    d_outputs, d_last = grads
    hidden, time, batch = d_outputs.shape
    gates, number = CELLS[cell].gates, jnp.float32
    two_shares = CELLS[cell].two_shares
    d_u, own, d_bias, d_h, d_c, _ = _call(
        BACKWARD,
        (
            ((gates * hidden, time, batch), dtype),
            ((hidden, time, batch) if two_shares else (0,), dtype),
            ((hidden, kernels.padded(batch)) if two_shares else (0,), number),
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
    own = own if two_shares else None
    if isinstance(res.source, Table):
        d_kernel, d_columns = _gradients(kernels, res.before, d_u, res.source)
        if own is not None:
            own = _gradients(kernels, res.before[:0], own, res.source)[1]
        d_source: Source = Table(with_own(d_columns, own), no_gradient(res.source.tokens))
    else:
        d_kernel, _ = _gradients(kernels, res.before, d_u)
        d_source = source_grad(res.source, d_u, own, dtype)
    d_weights = Weights(d_kernel, jnp.sum(d_bias, axis=1) if two_shares else None)
    return d_source, d_weights, (d_h.T, d_c.T)[: len(d_last)]


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
    symbols = 0 if table is None else table.columns.shape[1]
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
