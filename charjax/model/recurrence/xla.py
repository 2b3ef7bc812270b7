"""The recurrence as `lax.scan` with a hand-written VJP, for every backend of XLA.

Equal in value and gradient to `nn.scan` over the cell (invariant 5 of CONTRIBUTING.md), and
faster for these reasons:

* Arrays are feature-major, [features, time, batch], so that every matmul, forward and
  backward, reads its operands in the layout that they have in memory.
* A table of input gates is looked up step by step; those of all positions are never stored.
* The backward loop reads the cell's residuals instead of recomputing the gates.
* It multiplies by the recurrent kernel without transposing it.
* The gradient of the recurrent kernel is one matmul over all time steps after the loop. Its
  operands are buffers that the loops write in place, see `xla_buffers`.
* On a CPU the gates are computed in blocks of units, which XLA runs on several threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from charjax.model.cells import CELLS, Gates, Residuals
from charjax.model.matmul import dot, dot_trailing, lookup, one_hot, row_major
from charjax.model.recurrence import base, xla_buffers
from charjax.model.recurrence.base import Inputs, Layer, Operands, Result, Weights
from charjax.model.recurrence.xla_buffers import Buffer

# XLA:CPU gives a second thread work only where more than a few kernels are ready at once, or
# where one is large. Eight blocks of units are enough kernels. In layers of fewer units than
# `_BLOCKED_SIZES` blocks cost more than they gain; in layers of more the kernels are large.
_NUM_BLOCKS = 8
_BLOCKED_SIZES = range(256, 1024)


def supports(layer: Layer) -> str:
    """Why it cannot run a layer: no recurrent kernel, or an input that the state gates."""
    if not CELLS[layer.cell].has_recurrent_kernel:
        return f"config.model.cell={layer.cell} has no recurrent kernel"
    gates_input = CELLS[layer.cell].rounds > 0
    return f"config.model.cell={layer.cell} gates its input by the state" if gates_input else ""


class _Residuals(NamedTuple):
    operands: Operands
    h_before: Buffer  # the state before each step, in the compute dtype
    cell: tuple[Residuals, ...]  # for each block of units, [time, units, batch]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run(cell: str, dtype: DTypeLike, operands: Operands) -> Result:
    """Runs one layer over a sequence; see `charjax.model.recurrence.api.run`."""
    return _forward(cell, dtype, operands)[0]


def _forward(cell: str, dtype: DTypeLike, operands: Operands) -> tuple[Result, _Residuals]:
    inputs, weights, carry, resets = operands
    time, batch = inputs.time_and_batch
    hidden, gates = weights.kernel.shape[0], CELLS[cell].gates
    kernel, blocks = row_major(weights.kernel.astype(dtype).T), _blocks(hidden)
    igates_at = _igates_by_block(inputs, gates, blocks)

    def step(loop: Any, xs: tuple[Array, Array, Array | None]) -> tuple[Any, Any]:
        (carry, h_before, outputs), (t, x, reset) = loop, xs
        carry = [_zero_where(reset, part) for part in carry]
        # The weight gradient needs the state before each step. To shift the outputs by one
        # step after the loop would copy the buffer.
        h = jnp.concatenate([xla_buffers.encode(part[0], dtype) for part in carry])
        h_before = xla_buffers.put(h_before, t, h)
        all_hgates = _split_gates(dot(kernel, xla_buffers.decode(h, dtype), dtype), gates)
        next_carry, residuals = [], []
        for block, igates, part in zip(blocks, igates_at(x), carry, strict=True):
            hgates = _take_units(all_hgates, block)
            if weights.bias is not None:
                hgates = (*hgates[:-1], hgates[-1] + weights.bias[block, None])
            part, saved = CELLS[cell].forward(igates, hgates, part)
            outputs = xla_buffers.put(outputs, t, part[0], first=block.start)
            next_carry.append(part)
            residuals.append(saved)
        return (tuple(next_carry), h_before, outputs), tuple(residuals)

    buffers = (xla_buffers.empty(hidden, time, batch, d) for d in (dtype, jnp.float32))
    igates = _time_major(inputs.igates) if inputs.tokens is None else inputs.tokens
    first = tuple(_take_units(base.transposed(carry), block) for block in blocks)
    loop: Any = (first, *buffers)
    xs = jnp.arange(time), igates, resets
    (last, h_before, outputs), residuals = jax.lax.scan(step, loop, xs)
    last_carry = base.transposed(_join_units(last))
    return (outputs, last_carry), _Residuals(operands, h_before, residuals)


def _backward(cell: str, dtype: DTypeLike, res: _Residuals, grads: Result) -> tuple[Operands]:
    (inputs, weights, _, resets), (d_outputs, d_last) = res.operands, grads
    time, batch = inputs.time_and_batch
    hidden, gates = weights.kernel.shape
    kernel, blocks = weights.kernel.astype(dtype), _blocks(hidden)

    def step(loop: Any, xs: tuple[Array, Array, Any, Array | None]) -> tuple[Any, None]:
        (d_carry, d_hgates, d_candidate, d_bias), (t, d_output, residuals, reset) = loop, xs
        grads = [
            CELLS[cell].backward(saved, (part[0] + d_output[block], *part[1:]))
            for block, saved, part in zip(blocks, residuals, d_carry, strict=True)
        ]
        # Encoded first, concatenated then: the other order is slower.
        by_gate = zip(*(g.hgates for g in grads), strict=True)
        now = jnp.concatenate([xla_buffers.encode(d, dtype) for gate in by_gate for d in gate])
        d_h = dot(kernel, xla_buffers.decode(now, dtype), dtype)
        d_carry = []
        for block, g in zip(blocks, grads, strict=True):
            d_carry.append(_zero_where(reset, (g.carry[0] + d_h[block], *g.carry[1:])))
            if g.candidate is not None:
                encoded = xla_buffers.encode(g.candidate, dtype)
                d_candidate = xla_buffers.put(d_candidate, t, encoded, first=block.start)
        if d_bias is not None:  # summed here: after the loop it would read the whole buffer
            d_bias = [d + jnp.sum(g.hgates[-1], axis=1) for d, g in zip(d_bias, grads, strict=True)]
        return (tuple(d_carry), xla_buffers.put(d_hgates, t, now), d_candidate, d_bias), None

    d_hgates = xla_buffers.empty(gates, time, batch, dtype)
    has_candidate, bias = CELLS[cell].reset_after, weights.bias
    d_candidate = xla_buffers.empty(hidden, time, batch, dtype) if has_candidate else None
    d_bias = None if bias is None else [jnp.zeros_like(bias[block]) for block in blocks]
    xs = jnp.arange(time), _time_major(d_outputs), res.cell, resets
    d_carry = tuple(_take_units(base.transposed(d_last), block) for block in blocks)
    loop = (d_carry, d_hgates, d_candidate, d_bias)
    (d_carry, *buffers, d_bias), _ = jax.lax.scan(step, loop, xs, reverse=True)
    d_hgates, d_candidate = jax.tree.map(lambda b: xla_buffers.decode(b, dtype), buffers)
    d_inputs = _input_grad(inputs, d_hgates, d_candidate, dtype)
    d_kernel = dot_trailing(xla_buffers.decode(res.h_before, dtype), d_hgates, dtype)
    d_weights = Weights(d_kernel, None if d_bias is None else jnp.concatenate(d_bias))
    # XLA:CPU would transpose the matmul of a single step instead, see `row_major`.
    d_first = base.transposed(tuple(row_major(state) for state in _join_units(d_carry)))
    return (Operands(d_inputs, d_weights, d_first),)


run.defvjp(_forward, _backward)


def _input_grad(
    inputs: Inputs,
    d_hgates: Float[Array, "gates time batch"],
    d_candidate: Float[Array, "hidden time batch"] | None,
    dtype: DTypeLike,
) -> Inputs:
    """The gradient of a layer's inputs, from those of the hidden gates and the candidate."""
    if inputs.tokens is not None:
        ones = one_hot(inputs.tokens, inputs.igates.shape[1], dtype)
        d_hgates = dot_trailing(d_hgates, ones, dtype)
        if d_candidate is not None:
            d_candidate = dot_trailing(d_candidate, ones, dtype)
    return inputs.cotangent(d_hgates, d_candidate)


def _zero_where(
    reset: Bool[Array, " batch"] | None, states: tuple[Float[Array, "units batch"], ...]
) -> tuple[Float[Array, "units batch"], ...]:
    """The states with zeros for the sequences that reset; unchanged if `reset` is None."""
    return states if reset is None else tuple(jnp.where(reset, 0.0, state) for state in states)


def _igates_by_block(
    inputs: Inputs, gates: int, blocks: list[slice]
) -> Callable[[Array], list[Gates]]:
    """The function from one step of the scanned inputs to the input gates of each block."""
    if inputs.tokens is None:
        return lambda igates: [_take_units(_split_gates(igates, gates), block) for block in blocks]
    # A table for each block: XLA:CPU runs one look-up on one thread.
    by_gate = _split_gates(inputs.igates, gates)
    tables = [jnp.concatenate(_take_units(by_gate, block)) for block in blocks]
    return lambda tokens: [_split_gates(lookup(table, tokens), gates) for table in tables]


def _blocks(hidden: int) -> list[slice]:
    """Cuts a layer's units into the blocks whose gates are computed separately."""
    split = hidden in _BLOCKED_SIZES and jax.default_backend() == "cpu"
    count = _NUM_BLOCKS if split else 1
    return [slice(*edges) for edges in pairwise(hidden * i // count for i in range(count + 1))]


def _take_units(
    arrays: Iterable[Float[Array, "hidden batch"]], block: slice
) -> tuple[Float[Array, "units batch"], ...]:
    return tuple(array[block] for array in arrays)


def _join_units(blocks: tuple[tuple[Array, ...], ...]) -> tuple[Float[Array, "hidden batch"], ...]:
    """The inverse of `_take_units` over all blocks."""
    return tuple(jnp.concatenate(parts) for parts in zip(*blocks, strict=True))


def _split_gates(x: Float[Array, "gates batch"], gates: int) -> Gates:
    return tuple(jnp.split(x, gates))


def _time_major(
    x: Float[Array, "features time batch"],
) -> Float[Array, "time features batch"]:
    """One copy here costs less than strided reads at every step of the loop."""
    return jnp.moveaxis(x, 1, 0)
