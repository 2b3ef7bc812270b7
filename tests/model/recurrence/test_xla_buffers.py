"""A residual buffer returns what was put into it, rounded to its dtype and not otherwise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.model.recurrence import xla_buffers
from tests.model.small import normal


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_buffer_decodes_to_what_was_put(dtype):
    x = normal(0, 5, 3, 2)  # [time, features, batch]

    def fill(buffer, t):
        encoded = xla_buffers.encode(x[t], dtype)
        buffer = xla_buffers.put(buffer, t, encoded[1:], first=1)
        return xla_buffers.put(buffer, t, encoded[:1]), None

    order = jnp.asarray([3, 0, 4, 1, 2])
    buffer, _ = jax.lax.scan(fill, xla_buffers.empty(3, 5, 2, dtype), order)
    want = x.astype(dtype).astype(jnp.float32)
    got = xla_buffers.decode(buffer, dtype)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(jnp.float32), jnp.moveaxis(want, 0, 1))


def test_a_bfloat16_buffer_is_stored_as_integers():
    # XLA:CPU would widen and rewrite a whole buffer of floats at every step.
    assert jnp.issubdtype(xla_buffers.empty(3, 5, 2, jnp.bfloat16).dtype, jnp.integer)
