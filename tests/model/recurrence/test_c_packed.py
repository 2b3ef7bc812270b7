"""The packed matmul is right, and batch-invariant."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from charjax.model.recurrence.c.packed import pack
from tests.model.recurrence.c_library import LIBRARY, needs_c, skip_without
from tests.model.small import UNOPTIMIZED, normal

pytestmark = needs_c

ROWS = [slice(*ends) for ends in ((0, 13), (0, 1), (1, 3), (3, 6), (6, 10), (5, 10), (7, 13))]


@partial(jax.jit, static_argnums=2, compiler_options=UNOPTIMIZED)
def products(kernel, states, dtype):
    """The products of the `ROWS` of the states, each of a call of its own."""
    packed = pack(LIBRARY, kernel, dtype)
    return [packed.multiply(states[rows]) for rows in ROWS]


# Around the sizes of bf16 pairs, vectors and panels.
@pytest.mark.parametrize(("k", "columns"), [(1, 1), (5, 7), (64, 64), (33, 130)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_is_right_and_does_not_depend_on_the_others(dtype, k, columns):
    skip_without(dtype)
    kernel, states = normal(1, k, columns), normal(2, 13, k)
    results, *some = map(np.asarray, products(kernel, states, dtype))
    exact = (np.asarray(a).astype(dtype).astype(np.float64) for a in (states, kernel))
    np.testing.assert_allclose(results, np.matmul(*exact), rtol=1e-5, atol=1e-5)
    for rows, result in zip(ROWS[1:], some, strict=True):
        np.testing.assert_array_equal(result, results[rows])
