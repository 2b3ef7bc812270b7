"""Every form of the product is numpy's float64 product of the rounded operands."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import distance, normal

from charjax.model.matmul import dot, dot_leading, dot_sum, matmul

DTYPES = ["float32", "bfloat16"]
# The longest is cut twice by the blockwise form, which takes about a thousand terms at a time.
TERMS = [1, 7, 1024, 2500]


def rounded(a, dtype):
    return np.asarray(jnp.asarray(a, dtype), np.float64)


def positive(seed, *shape):
    """Terms that do not cancel, so that a sum kept in bfloat16 would be off by percents."""
    return jnp.abs(normal(seed, *shape)) + 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("form", [dot, matmul])
def test_product(form, terms, dtype):
    a, b = positive(0, 4, terms), positive(1, terms, 6)
    got = form(a, b, dtype)  # not jitted: XLA may leave out a rounding between two operations
    assert got.dtype == jnp.float32
    assert distance(got, rounded(a, dtype) @ rounded(b, dtype)) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", TERMS)
def test_product_over_the_leading_axis(terms, dtype):
    a, b = positive(0, terms, 4), positive(1, terms, 6)
    got = jax.jit(dot_leading, static_argnums=2)(a, b, dtype)
    assert got.dtype == jnp.float32
    assert distance(got, rounded(a, dtype).T @ rounded(b, dtype)) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", [(3,), (5, 2, 9), (1500, 2500)])
def test_product_of_parts_is_the_product_of_the_whole(terms, dtype):
    parts = tuple(positive(i, 4, k) for i, k in enumerate(terms))
    kernels = tuple(jnp.asarray(positive(9 + i, k, 6), dtype) for i, k in enumerate(terms))
    got = jax.jit(dot_sum)(parts, kernels)
    want = rounded(np.concatenate(parts, 1), dtype) @ rounded(np.concatenate(kernels, 0), dtype)
    assert got.dtype == jnp.float32
    assert distance(got, want) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient(dtype):
    a, b, ct = positive(0, 1500, 4), positive(1, 4, 6), positive(2, 1500, 6)
    _, transpose = jax.vjp(lambda a, b: matmul(a, b, dtype), a, b)
    got = jax.jit(transpose)(ct)
    a, b, ct = (rounded(x, dtype) for x in (a, b, ct))
    assert distance(got, (ct @ b.T, a.T @ ct)) < 1e-5
    assert [g.dtype for g in got] == [jnp.float32, jnp.float32]


def test_gradient_has_the_operands_dtype():
    a, b = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4), jnp.float32)
    grads = jax.grad(lambda a, b: matmul(a, b, "bfloat16").sum(), argnums=(0, 1))(a, b)
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32]
