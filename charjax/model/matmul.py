"""Matrix products in a compute dtype with float32 results, in the forms that run fast.

`jnp.dot` on bfloat16 operands is quick on a CPU only when it is asked for
float32 results, contracts at most about a thousand terms for a thin left
operand, and finds no operand transposed; its automatic gradient asks for none
of these. On a GPU all forms are equally good, so the plain ones are used there.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# Measured on a Zen 5 core pair: 64 rows by 1024 terms run at 600 GFLOP/s in
# bfloat16, the same rows by 2048 terms at 290.
_MOST_TERMS = 1024

_BITS = {"float32": (8, 23), "bfloat16": (8, 7)}  # of exponent and mantissa


def dot(a: Float[Array, "m k"], b: Float[Array, "k n"], dtype: DTypeLike) -> Float[Array, "m n"]:
    """`a @ b` with operands rounded to `dtype` and accumulated in float32."""
    product: Array = jnp.dot(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)
    return product


def rounded(x: Float[Array, "*shape"], dtype: DTypeLike) -> Float[Array, "*shape"]:
    """The values of `x` as `dtype` holds them, in the dtype of `x`.

    Unlike a cast there and back, XLA may not leave it out.
    """
    return jax.lax.reduce_precision(x, *_BITS[jnp.dtype(dtype).name])


def dot_leading(
    a: Float[Array, "k m"], b: Float[Array, "k n"], dtype: DTypeLike
) -> Float[Array, "m n"]:
    """`a.T @ b`: a weight gradient, contracted over the leading axis."""

    def transposed_once(a: Array, b: Array) -> Array:
        # Without the constraint XLA transposes by name only, and the product is the slow one.
        return dot(with_layout_constraint(a.T, Layout((0, 1))), b, dtype)

    def plain(a: Array, b: Array) -> Array:
        return dot(a.T, b, dtype)

    product: Array = jax.lax.platform_dependent(
        a.astype(dtype), b.astype(dtype), cpu=transposed_once, default=plain
    )
    return product


def dot_sum(
    parts: tuple[Float[Array, "m _k"], ...], kernels: tuple[Float[Array, "_k n"], ...]
) -> Float[Array, "m n"]:
    """`concat(parts, 1) @ concat(kernels, 0)`; the kernels' dtype is the compute dtype."""
    dtype = kernels[0].dtype

    def blockwise(parts: Sequence[Array], kernels: Sequence[Array]) -> Array:
        return _sum(dot_blocks(a, b) for a, b in zip(parts, kernels, strict=True))

    def whole(parts: Sequence[Array], kernels: Sequence[Array]) -> Array:
        return dot(jnp.concatenate(parts, 1), jnp.concatenate(kernels, 0), dtype)

    parts = tuple(part.astype(dtype) for part in parts)
    product: Array = jax.lax.platform_dependent(parts, kernels, cpu=blockwise, default=whole)
    return product


def dot_blocks(a: Float[Array, "m k"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """`a @ b` of operands of one dtype, cut along `k` as far as a CPU wants it."""
    if a.dtype == jnp.float32:
        return dot(a, b, a.dtype)
    cuts = range(0, a.shape[1], _MOST_TERMS)
    return _sum(dot(a[:, i : i + _MOST_TERMS], b[i : i + _MOST_TERMS], a.dtype) for i in cuts)


def _sum(terms: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, terms)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(a: Float[Array, "m k"], b: Float[Array, "k n"], dtype: DTypeLike) -> Float[Array, "m n"]:
    """`a @ b` whose gradient, too, is computed in `dtype` and accumulated in float32."""
    return dot(a, b, dtype)


def _matmul_forward(a: Array, b: Array, dtype: DTypeLike) -> tuple[Array, tuple[Array, Array]]:
    return dot(a, b, dtype), (a, b)


def _matmul_backward(
    dtype: DTypeLike, operands: tuple[Array, Array], ct: Array
) -> tuple[Array, Array]:
    a, b = operands
    da = dot(ct, b.T, dtype).astype(a.dtype)
    return da, dot_leading(a, ct, dtype).astype(b.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)
