"""Kernels packed for products with few lanes or many, in C; see `kernels/step.c`.

A lane's sums are its own: the same bits, however many lanes are multiplied with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from charjax.model.recurrence.c.build import MULTIPLY, PACK, Kernels


@partial(jax.tree_util.register_dataclass, data_fields=("tiles",), meta_fields=("terms", "outputs"))
@dataclass(frozen=True)
class Packed:
    """A kernel as the compiled product reads it.

    Attributes:
      tiles: in the dtype of the product's operands.
      terms: how many rows the kernel has.
      outputs: how many columns.
    """

    tiles: Float[Array, " _"]
    terms: int
    outputs: int

    def multiply(self, states: Float[Array, "lanes terms"]) -> Float[Array, "lanes outputs"]:
        """`states @ kernel`, float32."""
        lanes, terms = states.shape
        narrow = self.tiles.dtype != jnp.float32
        results = jax.ShapeDtypeStruct((lanes, self.outputs), jnp.float32)
        rounded = jax.ShapeDtypeStruct((lanes, -(-terms // 2) if narrow else 0), jnp.float32)
        return jax.ffi.ffi_call(MULTIPLY, (results, rounded))(states, self.tiles)[0]


def pack(kernels: Kernels, kernel: Float[Array, "terms outputs"], dtype: DTypeLike) -> Packed:
    """A kernel packed, rounded to `dtype`."""
    terms, outputs = kernel.shape
    shape = jax.ShapeDtypeStruct((kernels.packed_size(terms, outputs),), jnp.dtype(dtype))
    return Packed(jax.ffi.ffi_call(PACK, shape)(kernel.astype(jnp.float32)), terms, outputs)
