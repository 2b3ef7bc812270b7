"""The recurrence in C: a custom VJP over XLA's FFI, whose sources are in `src/`.

C runs the loops over time, forward and backward, and after the backward loop sums the gradients of
the recurrent kernel and of a table of input gates over all positions. XLA computes the input gates
before the loop, and after it the gradients of what they were computed from.

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

from charjax.model.cells import CELLS
from charjax.model.recurrence import base
from charjax.model.recurrence.base import Inputs, Layer, Operands, Outputs, Result, Weights
from charjax.model.recurrence.c import build
from charjax.model.recurrence.c.build import Library, Unavailable

# A result whose carry is feature-major, as the library has it.
_Result: TypeAlias = tuple[Outputs, tuple[Float[Array, "hidden batch"], ...]]
# Numbers of the compute dtype at every position, in tiles: see src/sequence.h.
_Tiles: TypeAlias = Float[Array, "_ _ _ _"]  # [time, panels, features, vector width]
# Shapes and dtypes of a call's results.
_Shapes: TypeAlias = list[jax.ShapeDtypeStruct]


class _Static(NamedTuple):
    """What a layer's compiled calls depend on besides the shapes."""

    cell: str
    dtype: DTypeLike
    library: Library


class _Residuals(NamedTuple):
    operands: Operands
    outputs: Outputs
    previous: _Tiles  # h before each step
    cell: Float[Array, "time residuals padded"]  # as src/cells.h has them


def supports(layer: Layer) -> str:
    """Why the C library cannot run this layer here; "" if it can."""
    library = build.load()
    if isinstance(library, Unavailable):
        return library.reason
    if layer.cell not in build.RESIDUALS:
        return f"it has no cell {layer.cell}"
    if not library.supports_dtype(layer.dtype):
        return f"the processor has no {layer.dtype} dot products"
    return ""


def run(cell: str, dtype: DTypeLike, operands: Operands) -> Result:
    """One layer over a sequence; see `charjax.model.recurrence.api.run`."""
    library = build.load()
    assert isinstance(library, Library)  # see `supports`
    static = _Static(cell, dtype, library)
    inputs, weights, carry, resets = operands
    if inputs.tokens is not None:  # the library indexes with them unchecked
        tokens = jnp.clip(inputs.tokens, 0, inputs.igates.shape[1] - 1)
        inputs = inputs._replace(tokens=tokens)
    keep = None if resets is None else resets.astype(jnp.int32) - 1
    outputs, last = _run(static, Operands(inputs, weights, base.transposed(carry), keep))
    return outputs, base.transposed(last)


# The operands of the functions below are the library's: their carry is feature-major, and `resets`
# int32, 0 where the carry is reset, else -1.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(static: _Static, operands: Operands) -> _Result:
    return _call_forward(static, operands, save=False)[0]


def _forward(static: _Static, operands: Operands) -> tuple[_Result, _Residuals]:
    result, saved = _call_forward(static, operands, save=True)
    return result, _Residuals(operands, result[0], *saved)


def _backward(static: _Static, res: _Residuals, grads: _Result) -> tuple[Operands]:
    d_hgates, d_candidate, d_bias, d_carry = _call_backward(static, res, grads)
    inputs = res.operands.inputs
    d_kernel, d_table = _weight_grad(static, res.previous, d_hgates, inputs)
    if inputs.tokens is not None:
        d_hgates = d_table
        if d_candidate is not None:
            # Without rows, so that only the table's gradient is computed.
            no_rows = res.previous[:, :, :0]
            _, d_candidate = _weight_grad(static, no_rows, d_candidate, inputs)
    d_inputs = inputs.cotangent(d_hgates, d_candidate)
    return (Operands(d_inputs, Weights(d_kernel, d_bias), d_carry),)


_run.defvjp(_forward, _backward)


def _call_forward(
    static: _Static, operands: Operands, *, save: bool
) -> tuple[_Result, list[Array]]:
    """The result and, if `save`, the previous h and the cell's residuals."""
    inputs, weights, initial, keep = operands
    (time, batch), hidden = inputs.time_and_batch, len(initial[0])
    vocab = 0 if inputs.tokens is None else inputs.igates.shape[1]
    library, cell = static.library, static.cell
    shapes = [_shape(hidden, time, batch)] + [_shape(hidden, batch)] * len(initial)
    if save:
        shapes.append(_tiles(static, hidden, time, batch))
        shapes.append(_shape(time, build.RESIDUALS[cell] * hidden, library.padded(batch)))
    arguments, sizes = (weights, inputs, initial, keep), (cell, hidden, batch, vocab)
    outputs, *rest = _call(static, build.FORWARD, shapes, arguments, sizes, cell=cell)
    return (outputs, tuple(rest[: len(initial)])), rest[len(initial) :]


def _call_backward(
    static: _Static, res: _Residuals, grads: _Result
) -> tuple[Array, Array | None, Array | None, tuple[Array, ...]]:
    """Gradients of the hidden gates, the candidate's input gate, the bias, the initial carry.

    With a table the first two are in tiles, else [features, time, batch].
    """
    inputs, weights, initial, keep = res.operands
    d_outputs, d_last = grads
    hidden, time, batch = d_outputs.shape
    library, cell = static.library, static.cell
    gates, reset_after = CELLS[cell].gates, CELLS[cell].reset_after
    sequence = partial(_sequence if inputs.tokens is None else _tiles, static)
    shapes = [sequence(gates * hidden, time, batch)]
    if reset_after:
        shapes.append(sequence(hidden, time, batch))
        shapes.append(_shape(hidden, library.padded(batch)))
    shapes += [_shape(hidden, batch)] * len(d_last)
    arguments = res.outputs, weights.kernel, initial, res.cell, d_outputs, d_last, keep
    sizes = cell, hidden, batch
    d_hgates, *rest = _call(static, build.BACKWARD, shapes, arguments, sizes, cell=cell)
    if not reset_after:
        return d_hgates, None, None, tuple(rest)
    d_candidate, d_bias, *d_carry = rest
    return d_hgates, d_candidate, jnp.sum(d_bias, axis=1), tuple(d_carry)


def _weight_grad(
    static: _Static,
    previous: _Tiles,
    d_hgates: Float[Array, "_ _ _"] | _Tiles,
    inputs: Inputs,
) -> tuple[Float[Array, "hidden gates"], Any]:
    """`previous @ d_hgates.T` over all positions; with a table, the sums of `d_hgates` by token."""
    time, panels, hidden, width = previous.shape
    gates, padded = d_hgates.shape[0 if d_hgates.ndim == 3 else 2], static.library.padded
    shapes, arguments = [_shape(hidden, gates)], (previous, d_hgates, inputs.tokens)
    if inputs.tokens is not None:
        shapes.append(_shape(padded(gates) // width, inputs.igates.shape[1], width))
    sizes = hidden, time * panels
    d_kernel, *by_token = _call(static, build.WEIGHT_GRADIENT, shapes, arguments, sizes)
    if inputs.tokens is None:
        return d_kernel, None
    return d_kernel, by_token[0].swapaxes(1, 2).reshape(padded(gates), -1)[:gates]


def _sequence(static: _Static, features: int, time: int, batch: int) -> jax.ShapeDtypeStruct:
    return _shape(features, time, batch, dtype=static.dtype)


def _tiles(static: _Static, features: int, time: int, batch: int) -> jax.ShapeDtypeStruct:
    width = static.library.vector_width
    return _shape(time, -(-batch // width), features, width, dtype=static.dtype)


def _shape(*sizes: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def _call(
    static: _Static, name: str, shapes: _Shapes, arguments: Any, sizes: Any, **attributes: str
) -> list[Array]:
    """Calls a target of the library.

    Args:
      static: the library, and the dtype of the matmul operands.
      name: of the target.
      shapes: of the results, except the last one: the working memory.
      arguments: in order, those left out that are None.
      sizes: that the length of the working memory depends on, see `Library.length`.
      **attributes: of the call.
    """
    scratch = _shape(static.library.length(name, static.dtype, *sizes), dtype=static.dtype)
    target = build.target(name, static.dtype)
    call = jax.ffi.ffi_call(target, [*shapes, scratch], vmap_method="sequential")
    return list(call(*jax.tree.leaves(arguments), **attributes)[:-1])
