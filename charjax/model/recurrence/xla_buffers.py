"""Residual buffers [features, time, batch], written in place by a loop over time.

`lax.scan` would put time first. With time second, the weight gradient is one matmul of two
buffers over their trailing axes, and neither is transposed first.

A bfloat16 buffer holds the bits of its numbers as uint16, because XLA:CPU widens a bfloat16
`dynamic_update_slice` to float32, and the whole buffer with it, at every step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Shaped

Buffer = Shaped[Array, "features time batch"]


def empty(features: int, time: int, batch: int, dtype: DTypeLike) -> Buffer:
    """An uninitialized buffer for numbers of `dtype`."""
    return jax.lax.empty((features, time, batch), _storage_dtype(dtype))


def encode(x: Shaped[Array, "*shape"], dtype: DTypeLike) -> Shaped[Array, "*shape"]:
    """Rounds `x` to `dtype` and returns it in the storage dtype of a buffer."""
    return _bitcast(x.astype(dtype), _storage_dtype(dtype))


def decode(x: Shaped[Array, "*shape"], dtype: DTypeLike) -> Shaped[Array, "*shape"]:
    """The inverse of `encode`: the numbers, as `dtype`, of a buffer or an encoded array."""
    return _bitcast(x, dtype)


def put(
    buffer: Buffer, t: Int[Array, ""], encoded: Shaped[Array, "units batch"], *, first: int = 0
) -> Buffer:
    """`buffer` with `encoded` at time `t`, in the features from `first` on."""
    return jax.lax.dynamic_update_slice(buffer, encoded[:, None], (first, t, 0))


def _storage_dtype(dtype: DTypeLike) -> DTypeLike:
    return jnp.uint16 if jnp.dtype(dtype) == jnp.bfloat16 else dtype


def _bitcast(x: Array, dtype: DTypeLike) -> Array:
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)
