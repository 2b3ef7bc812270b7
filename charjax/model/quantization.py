"""Products of whole numbers, which are exact: no order of adding up changes a bit of them.

A state lies between -1 and 1 and is rounded to whole multiples of one unit; the weights of
each output are rounded to whole multiples of another, 8 bits with the sign. bfloat16 holds
whole numbers up to 256 and float32 those up to 2**24; the units are such that neither an
operand nor a sum goes beyond, whatever the state. They are powers of two, so that the way
back is exact as well.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from charjax.types import Scalar

_WEIGHTS = 127  # the largest whole number a weight becomes, so that int8 holds it
_STATES = 256  # the largest a state may become, so that bfloat16 holds it
_SUMS = 2**24  # up to here float32 holds every whole number


class Units(NamedTuple):
    """What whole numbers stand for.

    Attributes:
      state: how many units a state of 1 has.
      product: float32 [outputs], the worth of one unit of a product.
    """

    state: Scalar
    product: Float[Array, " outputs"]


def quantize(
    kernel: Float[Array, "hidden outputs"],
) -> tuple[Float[Array, "hidden outputs"], Units]:
    """A kernel as whole numbers from -127 to 127, float32, and their units."""
    largest = jnp.max(jnp.abs(kernel), axis=0)
    unit = _power_of_two(jnp.where(largest > 0, largest, 1.0) / _WEIGHTS, above=True)
    numbers = jnp.round(kernel / unit[None])
    heaviest = jnp.max(jnp.sum(jnp.abs(numbers), axis=0))
    state = _power_of_two(jnp.minimum(_STATES, _SUMS / jnp.maximum(heaviest, 1.0)), above=False)
    return numbers, Units(state, unit / state)


def _power_of_two(x: Float[Array, "*shape"], *, above: bool) -> Float[Array, "*shape"]:
    """The nearest that is not below, or not above, a positive number."""
    mantissa, exponent = jnp.frexp(x)  # the mantissa from 1/2 to 1
    whole = mantissa == 0.5
    return jnp.ldexp(jnp.ones_like(x), jnp.where(whole | (not above), exponent - 1, exponent))
