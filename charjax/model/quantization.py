"""Per-channel symmetric int8 quantization with power-of-two scales.

Each output channel (column) of a kernel is `scale * q`, q an integer from -127 to 127, and a
state in [-1, 1] is an integer in [-256, 256] over another scale. float32 accumulation of
their products is exact: bfloat16 and float32 hold both integers, and the state's scale is chosen
so that no sum of magnitudes exceeds 2**24, up to which float32 holds every integer. So a matmul
has the same bits in any order of summation, for any batch and layout. Scales are powers of two,
so that multiplying by them is exact too.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from charjax.types import Scalar

_MAX_WEIGHT = 127  # int8 holds this integer and its negative
_MAX_STATE = 256  # up to here bfloat16 holds every integer
_MAX_SUM = 2**24  # up to here float32 holds every integer


class Scales(NamedTuple):
    """Scales of a quantized matmul: `state @ kernel` is `(round(state * s.state) @ q) * s.result`.

    Attributes:
      state: float32 scalar, the integer that stands for a state of 1.
      result: float32 [outputs], what 1 in an output of the integer matmul stands for.
    """

    state: Scalar
    result: Float[Array, " outputs"]


def quantize(
    kernel: Float[Array, "hidden outputs"],
) -> tuple[Float[Array, "hidden outputs"], Scales]:
    """Rounds a kernel to integers.

    Args:
      kernel: float32; it is multiplied from the left by states in [-1, 1].

    Returns:
      The integers, from -127 to 127 and as float32, and the scales of the matmul.
    """
    largest = jnp.max(jnp.abs(kernel), axis=0)
    scale = _power_of_two(jnp.where(largest > 0, largest, 1.0) / _MAX_WEIGHT, round_up=True)
    q = jnp.round(kernel / scale[None])
    largest_sum = jnp.max(jnp.sum(jnp.abs(q), axis=0))
    bound = jnp.minimum(_MAX_STATE, _MAX_SUM / jnp.maximum(largest_sum, 1.0))
    state = _power_of_two(bound, round_up=False)
    return q, Scales(state, scale / state)


def _power_of_two(x: Float[Array, "*shape"], *, round_up: bool) -> Float[Array, "*shape"]:
    """Rounds positive numbers up or down to a power of two."""
    mantissa, exponent = jnp.frexp(x)  # mantissa in [1/2, 1)
    exact = mantissa == 0.5
    return jnp.ldexp(jnp.ones_like(x), jnp.where(exact | (not round_up), exponent - 1, exponent))
