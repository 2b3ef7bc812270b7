"""The packed matmul is right, and batch-invariant."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from charjax.model.recurrence.c import build
from charjax.model.recurrence.c.packed import pack
from tests.model.small import normal

LIBRARY = build.load()

pytestmark = pytest.mark.skipif(
    isinstance(LIBRARY, build.Unavailable), reason=f"no C library: {LIBRARY}"
)


# Around the sizes of bf16 pairs, vectors and panels.
@pytest.mark.parametrize(("k", "columns"), [(1, 1), (5, 7), (64, 64), (33, 130)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_is_right_and_does_not_depend_on_the_others(dtype, k, columns):
    if not LIBRARY.supports_dtype(dtype):
        pytest.skip(f"this processor has no {dtype} dot products")
    kernel, states = normal(1, k, columns), np.asarray(normal(2, 13, k))
    packed = pack(LIBRARY, kernel, dtype)
    results = np.asarray(packed.multiply(jnp.asarray(states)))
    exact = (np.asarray(a).astype(dtype).astype(np.float64) for a in (states, kernel))
    np.testing.assert_allclose(results, np.matmul(*exact), rtol=1e-5, atol=1e-5)
    for rows in (slice(0, 1), slice(1, 3), slice(3, 6), slice(6, 10), slice(5, 10), slice(7, 13)):
        some = packed.multiply(jnp.asarray(states[rows]))
        np.testing.assert_array_equal(some, results[rows])
