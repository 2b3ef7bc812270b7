"""A batch-invariant matmul with a packed kernel, in C: src/packed_matmul.c.

A row's result has the same bits however many rows are multiplied in one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from charjax.model.recurrence.c.build import MULTIPLY, PACK, Library


@partial(jax.tree_util.register_dataclass, data_fields=("panels",), meta_fields=("k", "columns"))
@dataclass(frozen=True)
class Packed:
    """A kernel [k, columns], packed in panels of columns.

    Attributes:
      panels: in the dtype of the matmul operands.
      k: rows of the kernel.
      columns: columns of the kernel.
    """

    panels: Float[Array, " _"]
    k: int
    columns: int

    def multiply(self, states: Float[Array, "batch k"]) -> Float[Array, "batch columns"]:
        """`states @ kernel`, float32."""
        batch = len(states)
        shapes = [jax.ShapeDtypeStruct((batch, self.columns), jnp.float32)]
        if self.panels.dtype != jnp.float32:  # working memory for the rounded states
            shapes.append(jax.ShapeDtypeStruct((batch, self.k + self.k % 2), self.panels.dtype))
        return jax.ffi.ffi_call(MULTIPLY, shapes)(states, self.panels)[0]


def pack(library: Library, kernel: Float[Array, "k columns"], dtype: DTypeLike) -> Packed:
    """Packs a kernel, rounded to `dtype`."""
    k, columns = kernel.shape
    shape = jax.ShapeDtypeStruct((library.packed_size(k, columns),), jnp.dtype(dtype))
    return Packed(jax.ffi.ffi_call(PACK, shape)(kernel.astype(jnp.float32)), k, columns)
