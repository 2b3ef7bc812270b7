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
from charjax.model.recurrence.c.build import Unavailable
from charjax.model.recurrence.c.library import (
    BACKWARD,
    EXTRA_RESIDUALS,
    FORWARD,
    WEIGHT_GRADIENT,
    Library,
    even,
)

# A result whose carry is feature-major, as the library has it.
_Result: TypeAlias = tuple[Outputs, tuple[Float[Array, "hidden batch"], ...]]
# Operands of matmuls at every position, in tiles: see src/sequence.h.
_Tiles: TypeAlias = Float[Array, "_ _ _ _"]  # [time, panels, features, vector width]


class _Static(NamedTuple):
    """What a layer's compiled calls depend on besides the shapes."""

    cell: str
    dtype: DTypeLike
    library: Library

    def call(self, name: str, *arguments: Any, **attributes: Any) -> list[Array]:
        """`Library.call` with the dtype."""
        return self.library.call(name, self.dtype, *arguments, **attributes)


class _Residuals(NamedTuple):
    operands: Operands
    outputs: Outputs
    previous: _Tiles  # h before each step
    cell: list[_Tiles]  # float32: the gates, and the extra number of a cell that has one


def supports(layer: Layer) -> str:
    """Why the C library cannot run this layer here; "" if it can."""
    library = build.load()
    if isinstance(library, Unavailable):
        return library.reason
    if layer.cell not in EXTRA_RESIDUALS:
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
    previous, *cell = saved
    return result, _Residuals(operands, result[0], previous, cell)


def _backward(static: _Static, res: _Residuals, grads: _Result) -> tuple[Operands]:
    d = _call_backward(static, res, grads)
    inputs, hidden = res.operands.inputs, len(res.outputs)
    d_kernel, d_table = _weight_grad(static, res.previous, d.hgates, inputs)
    d_kernel = _drop_padding(d_kernel[:hidden], hidden, axis=1)
    d_igates: Any = d.igates if d_table is None else _drop_padding(d_table, hidden, axis=0)
    d_candidate = None
    if d.candidate is not None:
        # Without rows, so that only the table's gradient is computed.
        no_rows = res.previous[:, :, :0]
        d_candidate = _weight_grad(static, no_rows, d.candidate, inputs)[1][:hidden]
    d_inputs = inputs.cotangent(d_igates, d_candidate)
    return (Operands(d_inputs, Weights(d_kernel, d.bias), d.carry),)


_run.defvjp(_forward, _backward)


def _call_forward(
    static: _Static, operands: Operands, *, save: bool
) -> tuple[_Result, list[Array]]:
    """The result and, if `save`, the previous h and the cell's residuals."""
    inputs, weights, initial, keep = operands
    (time, batch), hidden = inputs.time_and_batch, len(initial[0])
    vocab = 0 if inputs.tokens is None else inputs.igates.shape[1]
    cell = static.cell
    shapes = [_shape(hidden, time, batch)] + [_shape(hidden, batch)] * len(initial)
    if save:
        shapes.append(static.library.tiles(hidden, time, batch, static.dtype))
        residuals = [CELLS[cell].gates] + [1] * EXTRA_RESIDUALS[cell]
        tiles = static.library.tiles
        shapes += [tiles(n * even(hidden), time, batch, jnp.float32) for n in residuals]
    arguments, sizes = (weights, inputs, initial, keep), (cell, hidden, batch, vocab)
    outputs, *rest = static.call(FORWARD, shapes, arguments, sizes, cell=cell)
    return (outputs, tuple(rest[: len(initial)])), rest[len(initial) :]


class _Gradients(NamedTuple):
    """What the backward loop computes."""

    hgates: _Tiles  # of the hidden gates
    igates: Float[Array, "gates time batch"] | None  # of the input gates; None with a table
    candidate: _Tiles | None  # of the candidate's input gate, of a cell with `reset_after`
    bias: Float[Array, " hidden"] | None
    carry: tuple[Array, ...]  # of the initial carry


def _call_backward(static: _Static, res: _Residuals, grads: _Result) -> _Gradients:
    inputs, weights, initial, keep = res.operands
    d_outputs, d_last = grads
    hidden, time, batch = d_outputs.shape
    gates, reset_after = CELLS[static.cell].gates, CELLS[static.cell].reset_after
    tiles = static.library.tiles
    shapes = {"hgates": tiles(gates * even(hidden), time, batch, static.dtype)}
    if inputs.tokens is None:
        shapes["igates"] = _shape(gates * hidden, time, batch, dtype=static.dtype)
    elif reset_after:
        shapes["candidate"] = tiles(hidden, time, batch, static.dtype)
    if reset_after:
        shapes["bias"] = _shape(hidden, static.library.padded(batch))
    carry = [_shape(hidden, batch)] * len(d_last)
    arguments = res.outputs, res.cell, weights.kernel, initial, d_outputs, d_last, keep
    sizes, attributes = (static.cell, hidden, batch), {"cell": static.cell}
    all_shapes = [*shapes.values(), *carry]
    in_place = {}  # {argument: result}
    if jnp.dtype(static.dtype) == jnp.float32:
        in_place[1] = 0  # the gates: no later step reads them
        if "candidate" in shapes:
            in_place[2] = 1  # the extra residual of a GRU, likewise
    results = static.call(BACKWARD, all_shapes, arguments, sizes, in_place, **attributes)
    found = dict(zip(shapes, results, strict=False))
    d_bias = jnp.sum(found["bias"], axis=1) if reset_after else None
    igates, candidate = found.get("igates"), found.get("candidate")
    return _Gradients(found["hgates"], igates, candidate, d_bias, tuple(results[len(shapes) :]))


def _weight_grad(
    static: _Static, previous: _Tiles, grads: _Tiles, inputs: Inputs
) -> tuple[Float[Array, "padded_hidden padded_gates"], Any]:
    """`previous @ grads.T` over all positions; with a table, the sums of `grads` by token."""
    (time, panels, rows, width), columns = previous.shape, grads.shape[2]
    padded = static.library.padded(columns)
    shapes, arguments = [_shape(rows, columns)], (previous, grads, inputs.tokens)
    if inputs.tokens is not None:
        shapes.append(_shape(padded // width, inputs.igates.shape[1], width))
    sizes = rows, time * panels
    d_kernel, *by_token = static.call(WEIGHT_GRADIENT, shapes, arguments, sizes)
    if inputs.tokens is None:
        return d_kernel, None
    return d_kernel, by_token[0].swapaxes(1, 2).reshape(padded, -1)[:columns]


def _drop_padding(x: Array, hidden: int, axis: int) -> Array:
    """The features of an axis, without what pads those of each gate to an even number."""
    if hidden == even(hidden):
        return x
    by_gate = x.reshape(*x.shape[:axis], -1, even(hidden), *x.shape[axis + 1 :])
    kept = jax.lax.slice_in_dim(by_gate, 0, hidden, axis=axis + 1)
    return kept.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def _shape(*sizes: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)
