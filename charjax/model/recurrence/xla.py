"""The fast recurrence: one layer over a sequence, with a gradient of its own.

Equal in value and gradient to `nn.scan` over the cell (law 5), and faster for
six reasons. Lanes lie side by side in columns, so that each product, forwards
and backwards, reads its operands as they lie. The input's share of the gates is
computed before the loop, or for a first layer looked up in a table of vocabulary
size. The backward loop reads what the forward loop kept. It multiplies by the
recurrent kernel as it is. The recurrent weight gradient is taken after the loop, as one
product over all time steps. And on a CPU gates are computed in blocks of units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from charjax.model.cells import CELLS, Gates
from charjax.model.matmul import dot, dot_trailing, lookup, row_major
from charjax.model.recurrence import xla_buffers
from charjax.model.recurrence.base import (
    Inputs,
    Layer,
    Outputs,
    Projected,
    Table,
    Weights,
    input_grad,
)
from charjax.model.recurrence.xla_buffers import Stack
from charjax.types import LayerCarry

# XLA on a CPU gives a second thread work only where more than a few kernels wait at once, or
# where one is large. Eight blocks of units are enough of them. In narrower layers they cost more
# than they give; in wider ones the kernels are large.
_BLOCKS = 8
_IN_BLOCKS = range(256, 1024)  # units


def supports(layer: Layer) -> str:
    """It runs every layer on every device."""
    del layer
    return ""


class _Residuals(NamedTuple):
    inputs: Inputs
    weights: Weights
    before: Stack  # the state before each step, in the compute dtype
    saved: tuple[tuple[Float[Array, "time _ batch"], ...], ...]  # of each block of units


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run(
    cell: str, dtype: DTypeLike, inputs: Inputs, weights: Weights, carry: LayerCarry
) -> tuple[Outputs, LayerCarry]:
    """One layer over a sequence.

    Args:
      cell: a name in `CELLS`.
      dtype: of the products' operands; sums, gates and state are float32.
      inputs: the input's share of the gates.
      weights: the recurrent parameters.
      carry: the state before the first character, float32 [batch, hidden] each.

    Returns:
      The outputs, float32 [hidden, time, batch], and the carry after the last character.
    """
    return _forward(cell, dtype, inputs, weights, carry)[0]


def _forward(
    cell: str, dtype: DTypeLike, inputs: Inputs, weights: Weights, carry: LayerCarry
) -> tuple[tuple[Outputs, LayerCarry], _Residuals]:
    time, batch = _positions(inputs)
    hidden, gates = weights.kernel.shape[0], CELLS[cell].gates
    kernel, blocks = row_major(weights.kernel.astype(dtype).T), _blocks(hidden)
    shares = _shares(inputs, gates, blocks)

    def step(loop: Any, now: tuple[Array, Array]) -> tuple[Any, Any]:
        (carry, before, outputs), (at, x) = loop, now
        # The state before a step is what the weight gradient reads; to shift the stack of
        # those after it would be a copy.
        state = jnp.concatenate([xla_buffers.encode(part[0], dtype) for part in carry])
        before = xla_buffers.put(before, at, state)
        recurrent = _split(dot(kernel, xla_buffers.decode(state, dtype), dtype), gates)
        after, saved = [], []
        for block, igates, part in zip(blocks, shares(x), carry, strict=True):
            u = _cut(recurrent, block)
            if weights.bias is not None:
                u = (*u[:-1], u[-1] + weights.bias[block, None])
            part, kept = CELLS[cell].forward(igates, u, part)
            outputs = xla_buffers.put(outputs, at, part[0], first=block.start)
            after.append(part)
            saved.append(kept)
        return (tuple(after), before, outputs), tuple(saved)

    stacks = (xla_buffers.empty(hidden, time, batch, d) for d in (dtype, jnp.float32))
    xs = inputs.tokens if isinstance(inputs, Table) else _time_first(inputs.igates)
    begun = tuple(_cut(_columns(carry), block) for block in blocks)
    loop: Any = (begun, *stacks)
    (last, before, outputs), saved = jax.lax.scan(step, loop, (jnp.arange(time), xs))
    return (outputs, _columns(_join(last))), _Residuals(inputs, weights, before, saved)


def _backward(
    cell: str, dtype: DTypeLike, res: _Residuals, grads: tuple[Outputs, LayerCarry]
) -> tuple[Inputs, Weights, LayerCarry]:
    d_outputs, d_last = grads
    time, batch = _positions(res.inputs)
    hidden, gates = res.weights.kernel.shape
    kernel, blocks = res.weights.kernel.astype(dtype), _blocks(hidden)

    def step(loop: Any, now: tuple[Array, Array, Any]) -> tuple[Any, None]:
        (d_carry, d_u, own, d_bias), (at, d_output, saved) = loop, now
        grads = [
            CELLS[cell].backward(kept, (part[0] + d_output[block], *part[1:]))
            for block, kept, part in zip(blocks, saved, d_carry, strict=True)
        ]
        # Encoded piece by piece, before they are joined: the other way round is slower.
        by_gate = zip(*(of.hgates for of in grads), strict=True)
        column = jnp.concatenate(
            [xla_buffers.encode(d, dtype) for pieces in by_gate for d in pieces]
        )
        through_u = dot(kernel, xla_buffers.decode(column, dtype), dtype)
        d_carry = []
        for block, of in zip(blocks, grads, strict=True):
            d_carry.append((of.carry[0] + through_u[block], *of.carry[1:]))
            if of.candidate is not None:
                own = xla_buffers.put(
                    own, at, xla_buffers.encode(of.candidate, dtype), first=block.start
                )
        if d_bias is not None:  # summed here, so that no stack need be read for it
            d_bias = [
                d + jnp.sum(of.hgates[-1], axis=1) for d, of in zip(d_bias, grads, strict=True)
            ]
        return (tuple(d_carry), xla_buffers.put(d_u, at, column), own, d_bias), None

    d_u = xla_buffers.empty(gates, time, batch, dtype)
    own = xla_buffers.empty(hidden, time, batch, dtype) if CELLS[cell].reset_after else None
    bias = res.weights.bias
    d_bias = None if bias is None else [jnp.zeros_like(bias[block]) for block in blocks]
    xs = jnp.arange(time), _time_first(d_outputs), res.saved
    loop = (tuple(_cut(_columns(d_last), block) for block in blocks), d_u, own, d_bias)
    (d_carry, d_u, own, d_bias), _ = jax.lax.scan(step, loop, xs, reverse=True)
    d_u, own = jax.tree.map(lambda bits: xla_buffers.decode(bits, dtype), (d_u, own))
    d_inputs = input_grad(res.inputs, d_u, own, dtype)
    d_kernel = dot_trailing(xla_buffers.decode(res.before, dtype), d_u, dtype)
    d_weights = Weights(d_kernel, None if d_bias is None else jnp.concatenate(d_bias))
    return d_inputs, d_weights, _columns(_join(d_carry))


def _shares(inputs: Inputs, gates: int, blocks: list[slice]) -> Callable[[Array], list[Gates]]:
    """From what the scan has of a time step to the input's share of the gates, a block each."""
    if isinstance(inputs, Projected):
        return lambda column: [_cut(_split(column, gates), block) for block in blocks]
    # A table a block: one look-up for all of them would be work for a single thread.
    rows = _split(inputs.igates, gates)
    tables = [jnp.concatenate(_cut(rows, block)) for block in blocks]
    return lambda tokens: [_split(lookup(table, tokens), gates) for table in tables]


def _time_first(
    columns: Float[Array, "features time batch"],
) -> Float[Array, "time features batch"]:
    """One copy, cheaper than for the loop to read its columns from all over the memory."""
    return jnp.moveaxis(columns, 1, 0)


def _positions(inputs: Inputs) -> tuple[int, int]:
    time, batch = (inputs.tokens if isinstance(inputs, Table) else inputs.igates).shape[-2:]
    return time, batch


def _split(columns: Float[Array, "gates batch"], gates: int) -> Gates:
    return tuple(jnp.split(columns, gates))


def _blocks(hidden: int) -> list[slice]:
    """A layer's units in blocks whose gates are computed apart."""
    count = _BLOCKS if hidden in _IN_BLOCKS and jax.default_backend() == "cpu" else 1
    return [slice(*edges) for edges in pairwise(hidden * i // count for i in range(count + 1))]


def _cut(
    columns: Iterable[Float[Array, "hidden batch"]], block: slice
) -> tuple[Float[Array, "units batch"], ...]:
    """One block of each."""
    return tuple(column[block] for column in columns)


def _join(blocks: tuple[tuple[Array, ...], ...]) -> tuple[Float[Array, "hidden batch"], ...]:
    """What `_cut` has cut."""
    return tuple(jnp.concatenate(pieces) for pieces in zip(*blocks, strict=True))


def _columns(carry: tuple[Array, ...]) -> Any:
    """From lanes in rows to lanes in columns, or back."""
    return tuple(c.T for c in carry)


run.defvjp(_forward, _backward)
