"""Products with packed kernels: right, and each lane's bits its own."""

from __future__ import annotations

import numpy as np
import pytest

from charjax.model.recurrence.c import build
from charjax.model.recurrence.c.packed import pack
from tests.model.small import normal

KERNELS = build.load()

pytestmark = pytest.mark.skipif(
    isinstance(KERNELS, build.Unavailable), reason=f"no kernels here: {KERNELS}"
)


# Around the sizes of pairs, vectors and tiles.
@pytest.mark.parametrize(("terms", "outputs"), [(1, 1), (5, 7), (64, 64), (33, 130)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_right_and_a_lane_does_not_depend_on_the_others(dtype, terms, outputs):
    if not KERNELS.supports_dtype(dtype):
        pytest.skip(f"this processor has no products of {dtype}")
    kernel, states = normal(1, terms, outputs), normal(2, 13, terms)
    packed = pack(KERNELS, kernel, dtype)
    products = np.asarray(packed.multiply(states))
    wide = (np.asarray(a.astype(dtype), np.float64) for a in (states, kernel))
    np.testing.assert_allclose(products, np.matmul(*wide), rtol=1e-5, atol=1e-5)
    for lanes in (slice(0, 1), slice(1, 3), slice(3, 6), slice(6, 10), slice(5, 10), slice(7, 13)):
        np.testing.assert_array_equal(packed.multiply(states[lanes]), products[lanes])
