"""The fast recurrence: one layer over a sequence, with a gradient of its own.

Equal in value and gradient to `nn.scan` over the cell (law 5), and faster for
five reasons. Lanes lie side by side in columns, so that each product, forwards
and backwards, reads its operands as they lie. The input's share of the gates is
computed before the loop, or for a first layer looked up in a table of vocabulary
size. The backward loop reads what the forward loop kept. It multiplies by the
recurrent kernel as it is. And the recurrent weight gradient is taken after the loop,
as one product over all time steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from charjax.model import stack
from charjax.model.cells import CELLS, Gates, Saved
from charjax.model.matmul import dot, dot_trailing, in_order, look_up, no_gradient, one_hot
from charjax.model.stack import Stack
from charjax.types import LayerCarry

Outputs: TypeAlias = Float[Array, "hidden time batch"]


class Projected(NamedTuple):
    """The input's share of the gates, a column a character: float32 [gates, time, batch]."""

    columns: Float[Array, "gates time batch"]


class Table(NamedTuple):
    """The same by look-up: `columns[:, tokens]`, for a layer whose input is a character.

    Attributes:
      columns: float32 [gates, vocab], the projection of every symbol.
      tokens: int32 [time, batch].
    """

    columns: Float[Array, "gates vocab"]
    tokens: Int[Array, "time batch"]


class Weights(NamedTuple):
    """One layer's recurrent parameters, float32.

    Attributes:
      kernel: [hidden, gates].
      bias: [hidden], added to the last gate's share of the state; None where the
        cell has none.
    """

    kernel: Float[Array, "hidden gates"]
    bias: Float[Array, " hidden"] | None


class _Residuals(NamedTuple):
    source: Projected | Table
    weights: Weights
    before: Stack  # the state before each step, in the compute dtype
    saved: tuple[Float[Array, "time hidden batch"], ...]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def recur(
    cell: str, dtype: DTypeLike, source: Projected | Table, weights: Weights, carry: LayerCarry
) -> tuple[Outputs, LayerCarry]:
    """One layer over a sequence.

    Args:
      cell: a name in `CELLS`.
      dtype: of the products' operands; sums, gates and state are float32.
      source: the input's share of the gates.
      weights: the recurrent parameters.
      carry: the state before the first character, float32 [batch, hidden] each.

    Returns:
      The outputs, float32 [hidden, time, batch], and the carry after the last character.
    """
    return _forward(cell, dtype, source, weights, carry)[0]


def _forward(
    cell: str, dtype: DTypeLike, source: Projected | Table, weights: Weights, carry: LayerCarry
) -> tuple[tuple[Outputs, LayerCarry], _Residuals]:
    time, batch = _positions(source)
    hidden, gates = weights.kernel.shape[0], CELLS[cell].gates
    kernel = in_order(weights.kernel.astype(dtype).T)

    def step(loop: Any, now: tuple[Array, Array]) -> tuple[Any, Saved]:
        (carry, before, outputs), (at, x) = loop, now
        u = _split(dot(kernel, carry[0], dtype), gates)
        if weights.bias is not None:
            u = (*u[:-1], u[-1] + weights.bias[:, None])
        after, saved = CELLS[cell].forward(_split(_share(source, x), gates), u, carry)
        # The state before a step is what the weight gradient reads; to shift the stack of
        # those after it would be a copy.
        before = stack.put(before, at, stack.encode(carry[0], dtype))
        return (after, before, stack.put(outputs, at, after[0])), saved

    stacks = (stack.empty(hidden, time, batch, d) for d in (dtype, jnp.float32))
    xs = source.tokens if isinstance(source, Table) else _time_first(source.columns)
    (last, before, outputs), saved = jax.lax.scan(
        step, (_columns(carry), *stacks), (jnp.arange(time), xs)
    )
    return (outputs, _columns(last)), _Residuals(source, weights, before, saved)


def _backward(
    cell: str, dtype: DTypeLike, res: _Residuals, grads: tuple[Outputs, LayerCarry]
) -> tuple[Projected | Table, Weights, LayerCarry]:
    d_outputs, d_last = grads
    time, batch = _positions(res.source)
    hidden, gates = res.weights.kernel.shape
    kernel = res.weights.kernel.astype(dtype)

    def step(loop: Any, now: tuple[Array, Array, Saved]) -> tuple[Any, None]:
        (d_carry, d_u, own, d_bias), (at, d_output, saved) = loop, now
        d_carry = (d_carry[0] + d_output, *d_carry[1:])
        step_grads = CELLS[cell].backward(saved, d_carry)
        # Encoded gate by gate, before they are joined: the other way round is slower.
        column = jnp.concatenate([stack.encode(gate, dtype) for gate in step_grads.u])
        through_u = dot(kernel, stack.decode(column, dtype), dtype)
        d_carry = (step_grads.carry[0] + through_u, *step_grads.carry[1:])
        if own is not None and step_grads.own is not None:
            own = stack.put(own, at, stack.encode(step_grads.own, dtype))
        if d_bias is not None:  # summed here, so that no stack need be read for it
            d_bias += jnp.sum(step_grads.u[-1], axis=1)
        return (d_carry, stack.put(d_u, at, column), own, d_bias), None

    d_u = stack.empty(gates, time, batch, dtype)
    own = stack.empty(hidden, time, batch, dtype) if CELLS[cell].two_shares else None
    d_bias = None if res.weights.bias is None else jnp.zeros(hidden)
    xs = jnp.arange(time), _time_first(d_outputs), res.saved
    loop = (_columns(d_last), d_u, own, d_bias)
    (d_carry, d_u, own, d_bias), _ = jax.lax.scan(step, loop, xs, reverse=True)
    d_u, own = jax.tree.map(lambda bits: stack.decode(bits, dtype), (d_u, own))
    d_source = source_grad(res.source, d_u, own, dtype)
    d_kernel = dot_trailing(stack.decode(res.before, dtype), d_u, dtype)
    return d_source, Weights(d_kernel, d_bias), _columns(d_carry)


def source_grad(
    source: Projected | Table,
    d_u: Float[Array, "gates time batch"],
    own: Float[Array, "hidden time batch"] | None,
    dtype: DTypeLike,
) -> Projected | Table:
    """From the gradient of the state's share, and the last gate's own where it has one."""
    if isinstance(source, Projected):
        return Projected(_with_own(d_u, own).astype(jnp.float32))
    ones = one_hot(source.tokens, source.columns.shape[1], dtype)
    by_symbol = dot_trailing(d_u, ones, dtype)
    if own is not None:
        own = dot_trailing(own, ones, dtype)
    return Table(_with_own(by_symbol, own), no_gradient(source.tokens))


def _with_own(d_u: Array, own: Array | None) -> Array:
    """The rows of the last gate replaced by those of its own, if it has them."""
    return d_u if own is None else jnp.concatenate([d_u[: -own.shape[0]], own])


def _share(source: Projected | Table, x: Array) -> Float[Array, "gates batch"]:
    """The input's share of the gates at one time step, from what the scan has of it."""
    return look_up(source.columns, x) if isinstance(source, Table) else x


def _time_first(
    columns: Float[Array, "features time batch"],
) -> Float[Array, "time features batch"]:
    """One copy, cheaper than for the loop to read its columns from all over the memory."""
    return jnp.moveaxis(columns, 1, 0)


def _positions(source: Projected | Table) -> tuple[int, int]:
    time, batch = (source.tokens if isinstance(source, Table) else source.columns).shape[-2:]
    return time, batch


def _split(columns: Float[Array, "gates batch"], gates: int) -> Gates:
    return tuple(jnp.split(columns, gates))


def _columns(carry: tuple[Array, ...]) -> Any:
    """From lanes in rows to lanes in columns, or back."""
    return tuple(c.T for c in carry)


recur.defvjp(_forward, _backward)
