"""Every matmul equals numpy's float64 matmul of the rounded operands."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.model.matmul import dot, dot_trailing, lookup, one_hot, project
from tests.model.small import distance, normal

DTYPES = ["float32", "bfloat16"]
DEPTHS = [1, 7, 2500]  # length of the contracted axis


def rounded(a, dtype):
    """`a` rounded to `dtype`, as float64."""
    return np.asarray(jnp.asarray(a, dtype), np.float64)


def positive(seed, *shape):
    """Terms that do not cancel, so that a sum accumulated in bfloat16 would be off by percents."""
    return jnp.abs(normal(seed, *shape)) + 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("positions", [(6,), (3, 2)])
def test_dot(positions, depth, dtype):
    a, b = positive(0, 4, depth), positive(1, depth, *positions)
    got = dot(a, b, dtype)  # not jitted, since XLA may remove a rounding between two operations
    assert got.dtype == jnp.float32
    assert distance(got, np.tensordot(rounded(a, dtype), rounded(b, dtype), 1)) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positions", [(7,), (1, 5), (50, 50)])
def test_dot_trailing(positions, dtype):
    a, b = positive(0, 4, *positions), positive(1, 6, *positions)
    got = jax.jit(dot_trailing, static_argnums=2)(a, b, dtype)
    want = rounded(a, dtype).reshape(4, -1) @ rounded(b, dtype).reshape(6, -1).T
    assert got.dtype == jnp.float32
    assert distance(got, want) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_project_and_its_gradient(dtype):
    kernel, x, ct = positive(0, 4, 6), positive(1, 4, 30, 50), positive(2, 6, 30, 50)
    got, vjp = jax.vjp(lambda kernel, x: project(kernel, x, dtype), kernel, x)
    grads = jax.jit(vjp)(ct)
    kernel, x, ct = (rounded(a, dtype) for a in (kernel, x, ct))
    assert distance(got, np.tensordot(kernel.T, x, 1)) < 1e-5
    want = np.tensordot(x, ct, ((1, 2), (1, 2))), np.tensordot(kernel, ct, 1)
    assert distance(grads, want) < 1e-5
    assert [g.dtype for g in grads] == [jnp.float32, jnp.float32]


def test_gradients_of_project_have_the_dtypes_of_its_operands():
    kernel, x = jnp.ones((3, 4), jnp.bfloat16), jnp.ones((3, 2), jnp.float32)
    grads = jax.grad(lambda kernel, x: project(kernel, x, "bfloat16").sum(), argnums=(0, 1))(
        kernel, x
    )
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize("dtype", DTYPES)
def test_operands_and_results_may_be_transposed(dtype):
    # XLA folds transposes into a matmul, and lacks some of these matmuls in bfloat16.
    kernel, x, ct = positive(0, 256, 128), positive(1, 8, 16, 256), positive(2, 8, 16, 128)

    @jax.jit
    def both(kernel, x, ct):
        def run(kernel, x):
            return project(kernel, x.transpose(2, 1, 0), dtype).transpose(2, 1, 0)

        out, vjp = jax.vjp(run, kernel, x)
        return out, *vjp(ct)

    got = both(kernel, x, ct)
    kernel, x, ct = (rounded(a, dtype) for a in (kernel, x, ct))
    want = x @ kernel, np.tensordot(x, ct, ((0, 1), (0, 1))), ct @ kernel.T
    assert distance(got, want) < 1e-5


@pytest.mark.parametrize("matmul", [dot, dot_trailing])
def test_float32_asks_for_the_highest_precision(matmul):
    x = jnp.ones((4, 4))
    float32, bfloat16 = (
        jax.jit(matmul, static_argnums=2).lower(x, x, dtype).as_text()
        for dtype in ("float32", "bfloat16")
    )
    assert "HIGHEST" in float32
    assert "HIGHEST" not in bfloat16


def test_lookup_is_exact_and_its_gradient_a_scatter_add():
    table, tokens = 1e6 * normal(0, 4, 9), jnp.asarray([[0, 8, 3], [3, 3, 1]])
    got, vjp = jax.vjp(lambda table: lookup(table, tokens), table)
    np.testing.assert_array_equal(got, np.asarray(table)[:, tokens])
    ct = normal(1, 4, 2, 3)
    want = np.zeros((4, 9))
    np.add.at(want, (slice(None), np.asarray(tokens)), ct)
    assert distance(vjp(ct)[0], want) < 1e-6
    assert distance(dot_trailing(ct, one_hot(tokens, 9, jnp.float32), jnp.float32), want) < 1e-6
