"""What a loop over time leaves behind, one buffer [features, time, batch] written in place.

Time is not the leading axis, as a scan would have it: so laid out, the weight
gradient is one product of two stacks over their trailing axes, with neither
moved first.

A bfloat16 stack is kept as the bits of its numbers. XLA on a CPU widens a
bfloat16 update to float32, and with it the whole stack, at every step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Shaped

Stack = Shaped[Array, "features time batch"]
Column = Shaped[Array, "part batch"]  # all features of one time step, or some


def empty(features: int, time: int, batch: int, dtype: DTypeLike) -> Stack:
    """A stack to be filled with numbers of `dtype`."""
    stack: Array = jax.lax.empty((features, time, batch), _stored_as(dtype))
    return stack


def encode(x: Shaped[Array, "*shape"], dtype: DTypeLike) -> Shaped[Array, "*shape"]:
    """Rounds `x` to `dtype`, in the form that a stack holds."""
    return _bits(x.astype(dtype), _stored_as(dtype))


def decode(x: Shaped[Array, "*shape"], dtype: DTypeLike) -> Shaped[Array, "*shape"]:
    """The numbers of `dtype` that a stack, or an encoded array, holds."""
    return _bits(x, dtype)


def put(stack: Stack, at: Int[Array, ""], column: Column, *, first: int = 0) -> Stack:
    """The stack with the encoded `column` of one time step, from its `first` feature on."""
    filled: Array = jax.lax.dynamic_update_slice(stack, column[:, None], (first, at, 0))
    return filled


def _stored_as(dtype: DTypeLike) -> DTypeLike:
    return jnp.uint16 if jnp.dtype(dtype) == jnp.bfloat16 else dtype


def _bits(x: Array, dtype: DTypeLike) -> Array:
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)
