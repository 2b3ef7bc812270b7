"""Products of whole numbers are exact, and their operands near what they stand for."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.model.matmul import dot
from charjax.model.quantization import quantize
from tests.model.small import normal

KERNELS = pytest.mark.parametrize(
    "kernel",
    [normal(0, 300, 9), jnp.ones((3000, 4)), jnp.zeros((7, 3)), 1e-30 * normal(1, 5, 2)],
    ids=["normal", "heaviest", "zero", "tiny"],
)


@KERNELS
def test_a_weight_is_at_most_half_a_unit_off(kernel):
    numbers, units = quantize(kernel)
    assert (numbers == np.round(numbers)).all()
    assert np.abs(numbers).max() <= 127
    unit = np.asarray(units.product * units.state)  # of a weight
    assert (np.abs(np.asarray(numbers) * unit - kernel) <= 0.5 * unit).all()
    assert (np.frexp(unit)[0] == 0.5).all(), "a power of two"
    assert (np.abs(numbers).max(0) > 63).all() or (kernel == 0).all(), "of 8 bits, none is idle"


@KERNELS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_number_is_too_large_for_the_dtype_that_holds_it(kernel, dtype):
    numbers, units = quantize(kernel)
    assert (numbers.astype(dtype) == numbers).all()
    assert units.state.astype(dtype) == units.state
    assert 1 <= units.state == np.round(units.state)
    # The largest sum that any state can give, all of it 1 or -1, and so any part of it.
    assert float(units.state) * np.abs(np.asarray(numbers, np.float64)).sum(0).max() <= 2**24


@given(st.integers(0, 2**32 - 1), st.sampled_from(["float32", "bfloat16"]))
def test_products_are_exact_in_any_order(seed, dtype):
    rng = np.random.default_rng(seed)
    numbers, units = quantize(jnp.asarray(rng.standard_t(2, (200, 6)), jnp.float32))
    state = np.round(rng.uniform(-1, 1, (5, 200)) * float(units.state))
    exact = state.astype(np.int64) @ np.asarray(numbers, np.int64)
    order = rng.permutation(200)
    product = dot(jnp.asarray(state[:, order], jnp.float32), numbers[order], dtype)
    np.testing.assert_array_equal(product, exact)
