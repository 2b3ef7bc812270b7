"""Quantization: weights are off by half a scale at most, and matmuls of integers are exact."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.model.matmul import dot
from charjax.model.quantization import quantize
from tests.model.small import normal

run_quantize = jax.jit(quantize)
KERNELS = pytest.mark.parametrize(
    "kernel",
    [normal(0, 300, 9), jnp.ones((3000, 4)), jnp.zeros((7, 3)), 1e-30 * normal(1, 5, 2)],
    ids=["normal", "largest_sums", "zero", "tiny"],
)


@KERNELS
def test_a_weight_is_at_most_half_a_scale_off(kernel):
    q, scales = jax.device_get(run_quantize(kernel))
    assert (q == np.round(q)).all()
    assert np.abs(q).max() <= 127
    scale = np.asarray(scales.result * scales.state)  # of a weight
    assert (np.abs(np.asarray(q) * scale - kernel) <= 0.5 * scale).all()
    assert (np.frexp(scale)[0] == 0.5).all(), "powers of two"
    assert (np.abs(q).max(0) > 63).all() or (kernel == 0).all(), "all 8 bits are used"


@KERNELS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_operands_and_sums_are_integers_that_their_dtypes_hold(kernel, dtype):
    q, scales = jax.device_get(run_quantize(kernel))
    assert (q.astype(dtype) == q).all()
    assert scales.state.astype(dtype) == scales.state
    assert 1 <= scales.state == np.round(scales.state)
    # No state gives a larger sum than this, nor a larger partial sum.
    assert float(scales.state) * np.abs(np.asarray(q, np.float64)).sum(0).max() <= 2**24


@given(st.integers(0, 2**32 - 1), st.sampled_from(["float32", "bfloat16"]))
def test_matmuls_are_exact_in_any_order_of_summation(seed, dtype):
    rng = np.random.default_rng(seed)
    kernel = jnp.asarray(rng.standard_t(2, (200, 6)), jnp.float32)
    q, scales = jax.device_get(run_quantize(kernel))
    state = np.round(rng.uniform(-1, 1, (5, 200)) * float(scales.state))
    exact = state.astype(np.int64) @ np.asarray(q, np.int64)
    order = rng.permutation(200)
    result = dot(jnp.asarray(state[:, order], jnp.float32), jnp.asarray(q[order]), dtype)
    np.testing.assert_array_equal(result, exact)
