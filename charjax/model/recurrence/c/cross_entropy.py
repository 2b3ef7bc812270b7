"""The cross entropy of projected outputs in C: a custom VJP over src/cross_entropy.h."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from charjax.model.matmul import int_cotangent
from charjax.model.recurrence.c.library import (
    CROSS_ENTROPY_BACKWARD,
    CROSS_ENTROPY_FORWARD,
    Library,
)


class _Residuals(NamedTuple):
    kernel: Float[Array, "features vocab"]
    targets: Int[Array, "time batch"]
    x: Float[Array, "features time batch"]
    exps: Float[Array, "tiles vocab width"]  # of the logits less their position's largest
    sums: Float[Array, "tiles width"]  # of exps over the vocabulary


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def cross_entropy(
    library: Library,
    dtype: DTypeLike,
    kernel: Float[Array, "features vocab"],
    bias: Float[Array, " vocab"],
    x: Float[Array, "features time batch"],
    targets: Int[Array, "time batch"],
) -> Float[Array, "time batch"]:
    """As `charjax.model.cross_entropy.cross_entropy`, except for the order of sums."""
    return _forward(library, dtype, kernel, bias, x, targets)[0]


def _forward(
    library: Library, dtype: DTypeLike, kernel: Array, bias: Array, x: Array, targets: Array
) -> tuple[Float[Array, "time batch"], _Residuals]:
    features, time, batch = x.shape
    vocab, width = len(bias), library.vector_width
    tiles = library.padded(time * batch) // width
    shapes = [(tiles, vocab, width), (tiles, width), (tiles, width)]
    exps, sums, excess = library.call(
        CROSS_ENTROPY_FORWARD,
        dtype,
        [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        (kernel, targets, x, bias),
        (features, vocab, tiles),
    )
    nats = (excess + jnp.log(sums)).reshape(-1)[: time * batch].reshape(time, batch)
    return nats, _Residuals(kernel, targets, x, exps, sums)


def _backward(
    library: Library, dtype: DTypeLike, res: _Residuals, d_nats: Float[Array, "time batch"]
) -> tuple[Array, Array, Array, Any]:
    (features, vocab), tiles = res.kernel.shape, len(res.exps)
    items = -(-tiles // library.tiles_per_item)
    shapes = [(vocab, features), (items, vocab), (features, *res.targets.shape)]
    d_kernel, d_bias, d_x = library.call(
        CROSS_ENTROPY_BACKWARD,
        dtype,
        [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        (*res, d_nats),
        (features, vocab, tiles),
    )
    return d_kernel.T, jnp.sum(d_bias, axis=0), d_x, int_cotangent(res.targets)


cross_entropy.defvjp(_forward, _backward)
