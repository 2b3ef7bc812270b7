"""The compiled library: its targets of XLA's FFI, and calls of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

# The FFI targets; `target` adds the dtype.
FORWARD, BACKWARD = "charjax_forward", "charjax_backward"
WEIGHT_GRADIENT = "charjax_weight_gradient"
PACK, MULTIPLY = "charjax_pack", "charjax_multiply"
CROSS_ENTROPY_FORWARD = "charjax_cross_entropy_forward"
CROSS_ENTROPY_BACKWARD = "charjax_cross_entropy_backward"
TARGETS = (
    FORWARD,
    BACKWARD,
    WEIGHT_GRADIENT,
    PACK,
    MULTIPLY,
    CROSS_ENTROPY_FORWARD,
    CROSS_ENTROPY_BACKWARD,
)

# The cells of the library, and how many float32 numbers the backward pass needs of a unit's step,
# beside its gates, as src/cells.h has them.
EXTRA_RESIDUALS = {"rnn": 0, "gru": 1, "lstm": 1}


@dataclass(frozen=True)
class Library:
    """The compiled library: which dtypes it has, and the buffers it needs.

    Attributes:
      functions: its C functions.
      vector_width: float32 numbers of a SIMD vector.
      tiles_per_item: of an item of work of the cross entropy.
      has_bfloat16: whether the processor has bfloat16 dot products.
    """

    functions: ctypes.CDLL
    vector_width: int
    tiles_per_item: int
    has_bfloat16: bool

    def supports_dtype(self, dtype: DTypeLike) -> bool:
        """Whether it multiplies operands of this dtype, float32 or bfloat16."""
        return self.has_bfloat16 or jnp.dtype(dtype) == jnp.float32

    def padded(self, count: int) -> int:
        """A batch, or another number of columns or positions, padded to full vectors."""
        return -(-count // self.vector_width) * self.vector_width

    def length(self, name: str, dtype: DTypeLike, *arguments: str | int) -> int:
        """Length of a target's last result, its scratch or panels, as src/ has it.

        Args:
          name: of the target.
          dtype: of the matmul operands.
          *arguments: of the C function of that name with `_length`: a cell's name, and numbers.
        """
        function = getattr(self.functions, target(f"{name}_length", dtype))
        function.restype = ctypes.c_long
        encoded = (x.encode() if isinstance(x, str) else ctypes.c_long(x) for x in arguments)
        return int(function(*encoded))

    def tiles(self, features: int, time: int, batch: int, dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        """The shape of an operand at every position, in tiles: see src/sequence.h."""
        sizes = time, -(-batch // self.vector_width), even(features), self.vector_width
        return jax.ShapeDtypeStruct(sizes, dtype)

    def call(
        self,
        name: str,
        dtype: DTypeLike,
        shapes: Sequence[jax.ShapeDtypeStruct],
        arguments: Any,
        sizes: Sequence[str | int],
        in_place: dict[int, int] | None = None,
        **attributes: str,
    ) -> list[Array]:
        """Calls a target.

        Args:
          name: of the target.
          dtype: of the matmul operands.
          shapes: of the results, except the last one: the working memory.
          arguments: in order, those left out that are None.
          sizes: that the length of the working memory depends on, see `length`.
          in_place: for each argument whose memory a result takes, by number, the result's number.
          **attributes: of the call.

        Returns:
          The results, except the working memory.
        """
        scratch = jax.ShapeDtypeStruct((self.length(name, dtype, *sizes),), dtype)
        call = jax.ffi.ffi_call(
            target(name, dtype),
            [*shapes, scratch],
            vmap_method="sequential",
            input_output_aliases=in_place,
        )
        return list(call(*jax.tree.leaves(arguments), **attributes)[:-1])


def even(features: int) -> int:
    """Features of a tile: numbers are padded to pairs, as bfloat16 is multiplied."""
    return features + features % 2


def target(name: str, dtype: DTypeLike) -> str:
    """The FFI target for matmul operands of this dtype: a function of the library."""
    return f"{name}_{jnp.dtype(dtype).name}"
