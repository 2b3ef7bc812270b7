"""A stack gives back what was put into it, rounded to its dtype and nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.model.recurrence import xla_buffers
from tests.model.small import normal


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_was_put_is_what_is_held(dtype):
    columns = normal(0, 5, 3, 2)  # [time, features, batch]

    def fill(held, at):
        column = xla_buffers.encode(columns[at], dtype)
        held = xla_buffers.put(held, at, column[1:], first=1)
        return xla_buffers.put(held, at, column[:1]), None

    order = jnp.asarray([3, 0, 4, 1, 2])
    held, _ = jax.lax.scan(fill, xla_buffers.empty(3, 5, 2, dtype), order)
    want = columns.astype(dtype).astype(jnp.float32)
    got = xla_buffers.decode(held, dtype)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(jnp.float32), jnp.moveaxis(want, 0, 1))


def test_bfloat16_is_not_held_as_a_float():
    # As one, XLA on a CPU would widen and rewrite the whole stack with every column.
    assert jnp.issubdtype(xla_buffers.empty(3, 5, 2, jnp.bfloat16).dtype, jnp.integer)
