"""Matrix products in a compute dtype with float32 results, in the forms that run fast.

What is multiplied lies in columns, [features, *positions]: a kernel stands on the
left. So every product of a training step reads its operands as they lie in memory,
which on a CPU is quicker than rows times a kernel (docs/performance.md has by how
much). bfloat16 operands are quick there only when asked for float32 results.
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

_BITS = {"float32": (8, 23), "bfloat16": (8, 7)}  # of exponent and mantissa


def dot(
    a: Float[Array, "m k"], b: Float[Array, " k *positions"], dtype: DTypeLike
) -> Float[Array, " m *positions"]:
    """`a @ b` with operands rounded to `dtype` and accumulated in float32."""
    return _contract(a, b, (1,), (0,), dtype)


def dot_trailing(
    a: Float[Array, " m *positions"], b: Float[Array, " n *positions"], dtype: DTypeLike
) -> Float[Array, "m n"]:
    """The same of all positions: `a @ b.T`, a weight gradient."""

    def whole(a: Array, b: Array) -> Array:
        # Over several axes at once, so that a batch cut over devices stays cut.
        positions = tuple(range(1, a.ndim))
        return _contract(a, b, positions, positions, dtype)

    def flat(a: Array, b: Array) -> Array:
        # XLA on a CPU would copy both operands to make one axis of several.
        a, b = (_moved(x.reshape(len(x), -1)) for x in (a, b))
        return _moved(_contract(a, b, (1,), (1,), dtype))

    a, b = a.astype(dtype), b.astype(dtype)
    product: Array = jax.lax.platform_dependent(a, b, cpu=flat, default=whole)
    return product


def rounded(x: Float[Array, "*shape"], dtype: DTypeLike) -> Float[Array, "*shape"]:
    """The values of `x` as `dtype` holds them, in the dtype of `x`.

    Unlike a cast there and back, XLA may not leave it out.
    """
    return jax.lax.reduce_precision(x, *_BITS[jnp.dtype(dtype).name])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(
    kernel: Float[Array, "k n"], x: Float[Array, " k *positions"], dtype: DTypeLike
) -> Float[Array, " n *positions"]:
    """`kernel.T @ x` whose gradient, too, is computed in `dtype` and accumulated in float32."""
    return _dot_in_order(kernel.T, x, dtype)


def _project_forward(
    kernel: Array, x: Array, dtype: DTypeLike
) -> tuple[Array, tuple[Array, Array]]:
    return project(kernel, x, dtype), (kernel, x)


def _project_backward(
    dtype: DTypeLike, operands: tuple[Array, Array], ct: Array
) -> tuple[Array, Array]:
    kernel, x = operands
    d_kernel, d_x = dot_trailing(x, ct, dtype), _dot_in_order(kernel, ct, dtype)
    return d_kernel.astype(kernel.dtype), d_x.astype(x.dtype)


project.defvjp(_project_forward, _project_backward)


def row_major(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x`, on a CPU moved so that it lies in memory as its shape says.

    XLA would only write down that an operand, or a result, is transposed, and leave the
    order to the product, which is then slow, and in bfloat16 at times one it cannot run.
    """
    result: Array = jax.lax.platform_dependent(x, cpu=_moved, default=lambda x: x)
    return result


@jax.custom_vjp
def lookup(
    table: Float[Array, "n symbols"], ids: Int[Array, "*positions"]
) -> Float[Array, " n *positions"]:
    """`table[:, ids]`, exactly; float32."""
    # Left to itself, XLA writes a row a position, and whoever reads it turns it again.
    return row_major(jnp.take(table, ids, axis=1, mode="clip"))


def _look_up_forward(table: Array, ids: Array) -> tuple[Array, tuple[Array, Array]]:
    return lookup(table, ids), (table, ids)


def _look_up_backward(operands: tuple[Array, Array], ct: Array) -> tuple[Array, Any]:
    table, ids = operands
    ones = one_hot(ids, table.shape[1], ct.dtype)
    return dot_trailing(ct, ones, ct.dtype), int_cotangent(ids)


lookup.defvjp(_look_up_forward, _look_up_backward)


def one_hot(
    ids: Int[Array, "*positions"], symbols: int, dtype: DTypeLike
) -> Float[Array, " symbols *positions"]:
    """A one in the row of each position's symbol.

    `dot_trailing` with it is the gradient of `lookup`: a scatter-add, as the product
    that is quick everywhere.
    """
    return jax.nn.one_hot(ids, symbols, dtype=dtype, axis=0)


def int_cotangent(ids: Int[Array, "*positions"]) -> Any:
    """What a gradient has in the place of whole numbers."""
    return np.zeros(ids.shape, jax.dtypes.float0)


def _moved(x: Array) -> Array:
    moved: Array = with_layout_constraint(x, Layout(tuple(range(x.ndim))))
    return moved


def _dot_in_order(a: Array, b: Array, dtype: DTypeLike) -> Array:
    return row_major(dot(row_major(a.astype(dtype)), row_major(b.astype(dtype)), dtype))


def _contract(
    a: Array, b: Array, axes_a: tuple[int, ...], axes_b: tuple[int, ...], dtype: DTypeLike
) -> Array:
    product: Array = jax.lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        ((axes_a, axes_b), ((), ())),
        # Else a GPU or a TPU would round float32 operands to fewer bits.
        precision=jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    return product
