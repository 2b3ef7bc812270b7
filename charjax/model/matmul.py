"""Matmuls in a compute dtype, accumulated in float32, in layouts that run fast.

Operands are feature-major, [features, *positions], and a kernel is the left operand: so every
matmul of a training step reads its operands in the layout that they have in memory, which on a
CPU is faster than batch-major states times a kernel (docs/kernels.md).
XLA:CPU multiplies bfloat16 operands quickly only if the result is float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

_EXPONENT_AND_MANTISSA_BITS = {"float32": (8, 23), "bfloat16": (8, 7)}


def dot(
    a: Float[Array, "m k"], b: Float[Array, " k *positions"], dtype: DTypeLike
) -> Float[Array, " m *positions"]:
    """`a @ b` of operands rounded to `dtype`, accumulated in float32."""
    return _contract(a, b, (1,), (0,), dtype)


def dot_trailing(
    a: Float[Array, " m *positions"], b: Float[Array, " n *positions"], dtype: DTypeLike
) -> Float[Array, "m n"]:
    """`a @ b.T` over all positions, as in a weight gradient; operands as for `dot`."""

    def over_all_axes(a: Array, b: Array) -> Array:
        # Positions are not flattened, so that a batch sharded over devices stays sharded.
        positions = tuple(range(1, a.ndim))
        return _contract(a, b, positions, positions, dtype)

    def over_one_axis(a: Array, b: Array) -> Array:
        # Flattened by hand: XLA:CPU would copy both operands to merge the axes.
        a, b = (_require_row_major(x.reshape(len(x), -1)) for x in (a, b))
        return _require_row_major(_contract(a, b, (1,), (1,), dtype))

    a, b = a.astype(dtype), b.astype(dtype)
    return jax.lax.platform_dependent(a, b, cpu=over_one_axis, default=over_all_axes)


def dot_leading(
    a: Float[Array, "*positions m"], b: Float[Array, "*positions n"], dtype: DTypeLike
) -> Float[Array, "m n"]:
    """`dot_trailing` of operands whose positions come first, [*positions, features]."""
    a, b = (x.reshape(-1, x.shape[-1]) for x in (a, b))
    return _contract(a, b, (0,), (0,), dtype)


def round_to(x: Float[Array, "*shape"], dtype: DTypeLike) -> Float[Array, "*shape"]:
    """`x` rounded to the values of `dtype`, in the dtype of `x`.

    XLA may remove a cast to `dtype` and back, but not this.
    """
    return jax.lax.reduce_precision(x, *_EXPONENT_AND_MANTISSA_BITS[jnp.dtype(dtype).name])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(
    kernel: Float[Array, "k n"], x: Float[Array, " k *positions"], dtype: DTypeLike
) -> Float[Array, " n *positions"]:
    """`kernel.T @ x`; forward and backward, operands are rounded to `dtype` as by `dot`."""
    return _dot_row_major(kernel.T, x, dtype)


def _project_forward(
    kernel: Array, x: Array, dtype: DTypeLike
) -> tuple[Array, tuple[Array, Array]]:
    return project(kernel, x, dtype), (kernel, x)


def _project_backward(
    dtype: DTypeLike, operands: tuple[Array, Array], ct: Array
) -> tuple[Array, Array]:
    kernel, x = operands
    d_kernel, d_x = dot_trailing(x, ct, dtype), _dot_row_major(kernel, ct, dtype)
    return d_kernel.astype(kernel.dtype), d_x.astype(x.dtype)


project.defvjp(_project_forward, _project_backward)


def dense(
    kernel: Float[Array, "k n"],
    bias: Float[Array, " n"],
    x: Float[Array, " k *positions"],
    dtype: DTypeLike,
) -> Float[Array, " n *positions"]:
    """`project` plus a bias."""
    y = project(kernel, x, dtype)
    return y + jnp.expand_dims(bias, tuple(range(1, y.ndim)))


def row_major(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x`, on a CPU copied so that its memory layout is row-major.

    XLA:CPU otherwise folds a transpose into the layout of a matmul's operand or result. That
    matmul is slow, and in bfloat16 sometimes one that it does not support.
    """
    return jax.lax.platform_dependent(x, cpu=_require_row_major, default=lambda x: x)


@jax.custom_vjp
def lookup(
    table: Float[Array, "n vocab"], tokens: Int[Array, "*positions"]
) -> Float[Array, " n *positions"]:
    """`table[:, tokens]`, float32. Tokens must be in [0, vocab)."""
    # Without `row_major` XLA writes the positions first, and every reader has to transpose.
    return row_major(jnp.take(table, tokens, axis=1, mode="clip"))


def _lookup_forward(table: Array, tokens: Array) -> tuple[Array, tuple[Array, Array]]:
    return lookup(table, tokens), (table, tokens)


def _lookup_backward(operands: tuple[Array, Array], ct: Array) -> tuple[Array, Any]:
    table, tokens = operands
    ones = one_hot(tokens, table.shape[1], ct.dtype)
    return dot_trailing(ct, ones, ct.dtype), int_cotangent(tokens)


lookup.defvjp(_lookup_forward, _lookup_backward)


def one_hot(
    tokens: Int[Array, "*positions"], vocab_size: int, dtype: DTypeLike
) -> Float[Array, " vocab *positions"]:
    """One-hot columns: 1 in the row of each position's token.

    `dot_trailing` with them is the gradient of `lookup`: the scatter-add as a matmul, which
    is fast on every backend.
    """
    return jax.nn.one_hot(tokens, vocab_size, dtype=dtype, axis=0)


def int_cotangent(x: Int[Array, "*shape"]) -> Any:
    """The cotangent that JAX expects for an integer argument: float0 zeros."""
    return np.zeros(x.shape, jax.dtypes.float0)


def _require_row_major(x: Array) -> Array:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _dot_row_major(a: Array, b: Array, dtype: DTypeLike) -> Array:
    return row_major(dot(row_major(a.astype(dtype)), row_major(b.astype(dtype)), dtype))


def _contract(
    a: Array, b: Array, axes_a: tuple[int, ...], axes_b: tuple[int, ...], dtype: DTypeLike
) -> Array:
    return jax.lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        ((axes_a, axes_b), ((), ())),
        # By default a GPU or TPU rounds float32 operands to fewer bits.
        precision=jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
