"""The recurrence in C: a custom VJP over XLA's FFI, whose sources are in `src/`.

The loops over time run in C, forward and backward. So do, after the backward loop, the gradients
of the recurrent kernel and of a table, as sums over all positions. The input gates before the loop
and their gradient after it are XLA's.

Values and gradients equal those of `charjax.model.recurrence.scan` except for the order of sums. A
sequence's bits do not depend on the others of its batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

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
    Resets,
    Table,
    Weights,
    input_grad,
    with_candidate,
)
from charjax.model.recurrence.c.build import (
    BACKWARD,
    FORWARD,
    WEIGHT_GRADIENT,
    CellInfo,
    Library,
    Unavailable,
    load,
    target,
)
from charjax.types import LayerCarry

# A carry as the library has it, feature-major: (h,) or (h, c), [hidden, batch] each.
_Carry: TypeAlias = tuple[Float[Array, "hidden batch"], ...]
# Shapes and dtypes of an FFI call's results.
_Shapes: TypeAlias = list[jax.ShapeDtypeStruct]


class _Static(NamedTuple):
    """What a layer's compiled calls depend on besides the shapes."""

    cell: CellInfo
    dtype: DTypeLike
    library: Library


class _Residuals(NamedTuple):
    inputs: Inputs
    weights: Weights
    initial: _Carry
    keep: Array | None
    outputs: Outputs
    previous: Float[Array, "hidden time batch"]  # h before each step, in the compute dtype
    cell: Float[Array, "time residuals padded"]  # as src/cells.h has them


def supports(layer: Layer) -> str:
    """Why the C library cannot run this layer here; "" if it can."""
    static = _static(layer.cell, layer.dtype)
    return static.reason if isinstance(static, Unavailable) else ""


def run(
    cell: str,
    dtype: DTypeLike,
    inputs: Inputs,
    weights: Weights,
    carry: LayerCarry,
    resets: Resets | None = None,
) -> tuple[Outputs, LayerCarry]:
    """One layer over a sequence; see `charjax.model.recurrence.api.run`.

    Raises:
      InputError: the library cannot run this layer here.
    """
    static = _static(cell, dtype)
    if isinstance(static, Unavailable):
        raise InputError(f"config.model.recurrence=c: {static.reason}")
    keep = None if resets is None else resets.astype(jnp.int32) - 1
    result: tuple[Outputs, LayerCarry] = _run(static, inputs, weights, carry, keep)
    return result


def _static(cell: str, dtype: DTypeLike) -> _Static | Unavailable:
    library = load()
    if isinstance(library, Unavailable):
        return library
    info = library.cell(cell)
    if info is None:
        return Unavailable(f"it has no cell {cell}")
    if not library.supports_dtype(dtype):
        return Unavailable(f"the processor has no {jnp.dtype(dtype).name} dot products")
    return _Static(info, dtype, library)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(
    static: _Static, inputs: Inputs, weights: Weights, carry: LayerCarry, keep: Array | None
) -> tuple[Outputs, LayerCarry]:
    initial = _transposed(carry)
    outputs, last, _ = _call_forward(static, inputs, weights, initial, keep, save=False)
    return outputs, _transposed(last)


def _forward(
    static: _Static, inputs: Inputs, weights: Weights, carry: LayerCarry, keep: Array | None
) -> tuple[tuple[Outputs, LayerCarry], _Residuals]:
    initial = _transposed(carry)
    outputs, last, saved = _call_forward(static, inputs, weights, initial, keep, save=True)
    residuals = _Residuals(inputs, weights, initial, keep, outputs, *saved)
    return (outputs, _transposed(last)), residuals


def _backward(
    static: _Static, res: _Residuals, grads: tuple[Outputs, LayerCarry]
) -> tuple[Inputs, Weights, LayerCarry, None]:
    d_hgates, d_candidate, d_bias, d_carry = _call_backward(static, res, grads)
    if isinstance(res.inputs, Table):
        d_kernel, d_table = _weight_and_table_grad(
            static.library, res.previous, d_hgates, _in_range(res.inputs)
        )
        if d_candidate is not None:
            # `previous[:0]` has no rows, so that only the table's gradient is computed.
            _, d_candidate = _weight_and_table_grad(
                static.library, res.previous[:0], d_candidate, _in_range(res.inputs)
            )
        tokens = int_cotangent(res.inputs.tokens)
        d_inputs: Inputs = Table(with_candidate(d_table, d_candidate), tokens)
    else:
        d_kernel = _weight_grad(static.library, res.previous, d_hgates)
        d_inputs = input_grad(res.inputs, d_hgates, d_candidate, static.dtype)
    return d_inputs, Weights(d_kernel, d_bias), _transposed(d_carry), None


_run.defvjp(_forward, _backward)


def _call_forward(
    static: _Static,
    inputs: Inputs,
    weights: Weights,
    initial: _Carry,
    keep: Array | None,
    *,
    save: bool,
) -> tuple[Outputs, _Carry, list[Array]]:
    """Outputs, the last carry and, if `save`, the previous h and the cell's residuals."""
    hidden, batch = initial[0].shape
    time = (inputs.tokens if isinstance(inputs, Table) else inputs.igates).shape[-2]
    library, cell = static.library, static.cell
    shapes = [_shape(hidden, time, batch)] + [_shape(hidden, batch)] * len(initial)
    if save:
        shapes.append(_shape(hidden, time, batch, dtype=static.dtype))
        shapes.append(_shape(time, cell.residuals * hidden, library.padded(batch)))
    scratch = library.forward_scratch(cell, hidden, batch)
    shapes.append(_shape(scratch, dtype=static.dtype))
    arguments = [weights.kernel]
    if weights.bias is not None:
        arguments.append(weights.bias)
    arguments += _in_range(inputs) if isinstance(inputs, Table) else inputs
    arguments += initial if keep is None else [*initial, keep]
    outputs, *rest, _ = _call(target(FORWARD, static.dtype), shapes, *arguments, cell=cell.name)
    return outputs, tuple(rest[: len(initial)]), rest[len(initial) :]


def _call_backward(
    static: _Static, res: _Residuals, grads: tuple[Outputs, LayerCarry]
) -> tuple[Array, Array | None, Array | None, _Carry]:
    """Gradients of the hidden gates, the candidate's input gate, the bias, the initial carry."""
    d_outputs, d_last = grads
    hidden, time, batch = d_outputs.shape
    library, cell = static.library, static.cell
    shapes = [_shape(cell.gates * hidden, time, batch, dtype=static.dtype)]
    if CELLS[cell.name].reset_after:
        shapes.append(_shape(hidden, time, batch, dtype=static.dtype))
        shapes.append(_shape(hidden, library.padded(batch)))
    shapes += [_shape(hidden, batch)] * len(d_last)
    scratch = library.backward_scratch(cell, hidden, batch)
    shapes.append(_shape(scratch, dtype=static.dtype))
    arguments = [res.outputs, res.weights.kernel, *res.initial, res.cell]
    arguments += [d_outputs, *_transposed(d_last)]
    if res.keep is not None:
        arguments.append(res.keep)
    d_hgates, *rest, _ = _call(target(BACKWARD, static.dtype), shapes, *arguments, cell=cell.name)
    if not CELLS[cell.name].reset_after:
        return d_hgates, None, None, tuple(rest)
    d_candidate, d_bias, *d_carry = rest
    return d_hgates, d_candidate, jnp.sum(d_bias, axis=1), tuple(d_carry)


def _weight_grad(
    library: Library,
    previous: Float[Array, "hidden time batch"],
    d_hgates: Float[Array, "gates time batch"],
) -> Float[Array, "hidden gates"]:
    """`previous @ d_hgates.T` over all positions."""
    a, b = _flat(previous), _flat(d_hgates)
    scratch = library.gradient_scratch(*a.shape)
    shapes = [_shape(len(a), len(b)), _shape(scratch, dtype=a.dtype)]
    d_kernel: Array = _call(target(WEIGHT_GRADIENT, a.dtype), shapes, a, b)[0]
    return d_kernel


def _weight_and_table_grad(
    library: Library,
    previous: Float[Array, "hidden time batch"],
    d_hgates: Float[Array, "gates time batch"],
    table: Table,
) -> tuple[Float[Array, "hidden gates"], Float[Array, "gates vocab"]]:
    """`_weight_grad`, and the sums of `d_hgates` by token: a scatter-add."""
    a, b, vocab = _flat(previous), _flat(d_hgates), table.igates.shape[1]
    panels = library.padded(len(b)) // library.vector_width
    shapes = [
        _shape(len(a), len(b)),
        _shape(panels, vocab, library.vector_width),
        _shape(library.gradient_scratch(*a.shape), dtype=a.dtype),
    ]
    d_kernel, by_token, _ = _call(
        target(WEIGHT_GRADIENT, a.dtype), shapes, a, b, table.tokens.reshape(-1)
    )
    by_token = by_token.swapaxes(1, 2).reshape(panels * library.vector_width, vocab)
    return d_kernel, by_token[: len(b)]


def _in_range(table: Table) -> Table:
    """The table with tokens clamped: the library indexes with them unchecked."""
    return table._replace(tokens=jnp.clip(table.tokens, 0, table.igates.shape[1] - 1))


def _flat(x: Float[Array, "features time batch"]) -> Float[Array, "features positions"]:
    features, time, batch = x.shape
    return x.reshape(features, time * batch)


def _transposed(carry: tuple[Array, ...]) -> Any:
    """Swaps a carry between batch-major and feature-major."""
    return tuple(part.T for part in carry)


def _shape(*sizes: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def _call(name: str, shapes: _Shapes, *arguments: Array, **attributes: str) -> Any:
    return jax.ffi.ffi_call(name, shapes, vmap_method="sequential")(*arguments, **attributes)
