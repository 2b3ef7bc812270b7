"""Matrix products in a compute dtype with float32 results, in the forms that run fast.

`jnp.dot` on bfloat16 operands is quick on a CPU only when it is asked for
float32 results, contracts at most about a thousand terms for a thin left
operand, and finds no operand transposed; its automatic gradient asks for none
of these. On a GPU all forms are equally good, so the plain ones are used there.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# Measured on a Zen 5 core pair: 64 rows by 1024 terms run at 600 GFLOP/s in
# bfloat16, the same rows by 2048 terms at 290.
_MOST_TERMS = 1024


def dot(
    a: Float[Array, "m k"], b: Float[Array, "k n"], dtype: DTypeLike
) -> Float[Array, "m n"]:
    """`a @ b` with operands rounded to `dtype` and accumulated in float32."""
    return jnp.dot(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def dot_leading(
    a: Float[Array, "k m"], b: Float[Array, "k n"], dtype: DTypeLike
) -> Float[Array, "m n"]:
    """`a.T @ b`: a weight gradient, both operands contracted over their leading axis."""
    if jnp.dtype(dtype) == jnp.float32:
        return dot(a.T, b, dtype)
    a, b = a.astype(dtype), b.astype(dtype)
    return jax.lax.platform_dependent(
        a,
        b,
        # The barrier keeps XLA from folding the transpose into the product.
        cpu=lambda a, b: dot(jax.lax.optimization_barrier(a.T), b, dtype),
        default=lambda a, b: dot(a.T, b, dtype),
    )


def dot_sum(
    parts: tuple[Float[Array, "m _k"], ...], kernels: tuple[Float[Array, "_k n"], ...]
) -> Float[Array, "m n"]:
    """`concat(parts, 1) @ concat(kernels, 0)`; the kernels' dtype is the compute dtype."""
    dtype = kernels[0].dtype

    def blockwise(*operands: Array) -> Array:
        left, right = operands[: len(parts)], operands[len(parts) :]
        return sum(_dot_blocks(a, b) for a, b in zip(left, right, strict=True))

    def whole(*operands: Array) -> Array:
        left, right = operands[: len(parts)], operands[len(parts) :]
        return dot(jnp.concatenate(left, 1), jnp.concatenate(right, 0), dtype)

    operands = (*(p.astype(dtype) for p in parts), *kernels)
    return jax.lax.platform_dependent(*operands, cpu=blockwise, default=whole)


def _dot_blocks(a: Array, b: Array) -> Array:
    k = a.shape[1]
    if a.dtype == jnp.float32:
        return dot(a, b, a.dtype)
    cuts = range(0, k, _MOST_TERMS)
    return sum(dot(a[:, i : i + _MOST_TERMS], b[i : i + _MOST_TERMS], a.dtype) for i in cuts)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(
    a: Float[Array, "m k"], b: Float[Array, "k n"], dtype: DTypeLike
) -> Float[Array, "m n"]:
    """`a @ b` whose gradient, too, is computed in `dtype` and accumulated in float32."""
    return dot(a, b, dtype)


def _matmul_forward(
    a: Array, b: Array, dtype: DTypeLike
) -> tuple[Array, tuple[Array, Array]]:
    return dot(a, b, dtype), (a, b)


def _matmul_backward(
    dtype: DTypeLike, operands: tuple[Array, Array], ct: Array
) -> tuple[Array, Array]:
    a, b = operands
    da = dot(ct, b.T, dtype).astype(a.dtype)
    return da, dot_leading(a, ct, dtype).astype(b.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)
