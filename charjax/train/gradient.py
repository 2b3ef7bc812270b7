"""The gradient of a batch, whole or in parts that run one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from charjax.data.batches import Batch
from charjax.model.network import RowKeys
from charjax.train.loss import TotalNats
from charjax.types import Carry, Count, PyTree, Scalar

# (parameters, carry, batch, dropout keys, characters that count in the whole batch) ->
# (loss in nats per character, its gradient, the carry after the batch)
Gradient: TypeAlias = Callable[[PyTree, Carry, Batch, RowKeys, Count], tuple[Scalar, PyTree, Carry]]


def make_gradient(total_nats: TotalNats) -> Gradient:
    """The gradient of a sum of nats divided by the number of characters counted."""

    def loss(
        params: PyTree, carry: Carry, batch: Batch, keys: RowKeys, counted: Count
    ) -> tuple[Scalar, Carry]:
        nats, carry = total_nats(params, carry, batch, keys)
        return nats / counted, carry

    def gradient(
        params: PyTree, carry: Carry, batch: Batch, keys: RowKeys, counted: Count
    ) -> tuple[Scalar, PyTree, Carry]:
        (value, carry), grads = jax.value_and_grad(loss, has_aux=True)(
            params, carry, batch, keys, counted
        )
        return value, grads, carry

    return gradient


def accumulated(gradient: Gradient, parts: int) -> Gradient:
    """The same gradient from `parts` parts of the batch, one after another.

    A part takes every so many-th lane, so that each device keeps its own lanes.
    """

    def cut(x: Array) -> Array:
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def join(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    def gradient_in_parts(
        params: PyTree, carry: Carry, batch: Batch, keys: RowKeys, counted: Count
    ) -> tuple[Scalar, PyTree, Carry]:
        def add(sums: PyTree, part: Any) -> tuple[PyTree, Carry]:
            lane_carry, lanes, lane_keys = part
            loss, grads, lane_carry = gradient(params, lane_carry, lanes, lane_keys, counted)
            return jax.tree.map(jnp.add, sums, (loss, grads)), lane_carry

        nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        (loss, grads), carries = jax.lax.scan(add, nothing, jax.tree.map(cut, (carry, batch, keys)))
        return loss, grads, jax.tree.map(join, carries)

    return gradient_in_parts
