"""A batch-invariant matmul with a packed kernel, in C: src/packed_matmul.h.

A row's result has the same bits however many rows are multiplied in one call.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from charjax.model.recurrence.c.library import MULTIPLY, PACK, Library, target


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A kernel [k, columns], packed in panels of columns.

    Attributes:
      panels: in the dtype of the matmul operands.
      k: rows of the kernel.
      columns: columns of the kernel.
    """

    panels: Float[Array, " _"]
    k: int = field(metadata={"static": True})
    columns: int = field(metadata={"static": True})

    def multiply(self, states: Float[Array, "batch k"]) -> Float[Array, "batch columns"]:
        """`states @ kernel`, float32."""
        dtype = self.panels.dtype
        padding = self.k % 2 if dtype == jnp.bfloat16 else 0  # the library multiplies pairs
        rounded = jnp.pad(states.astype(dtype), ((0, 0), (0, padding)))
        shape = jax.ShapeDtypeStruct((len(states), self.columns), jnp.float32)
        return jax.ffi.ffi_call(target(MULTIPLY, dtype), shape)(rounded, self.panels)


def pack(library: Library, kernel: Float[Array, "k columns"], dtype: DTypeLike) -> Packed:
    """Packs a kernel, rounded to `dtype`."""
    k, columns = kernel.shape
    shape = jax.ShapeDtypeStruct((library.length(PACK, dtype, k, columns),), jnp.dtype(dtype))
    panels = jax.ffi.ffi_call(target(PACK, dtype), shape)(kernel.astype(jnp.float32))
    return Packed(panels, k, columns)
