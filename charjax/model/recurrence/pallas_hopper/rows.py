"""What a CTA computes for each row of a batch tile: the largest of a row, and table look-ups.

Pallas has no gather and no argmax for Mosaic GPU. The numbers of a row are in the registers of four
threads of a warp, so that a reduction over a row is two shuffles, and every thread can load what
its own registers need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.mosaic.gpu import utils as mosaic
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE

_MATRIX = plgpu.Layout.WGMMA
COLUMN = _MATRIX.reduce(1)  # of one number a row, in all threads that have numbers of the row


def row_max(matrix: Array) -> tuple[Array, Array]:
    """The largest number of each row of [BATCH_TILE, n], and the first column that has it.

    In a row with NaN both are meaningless.
    """
    columns = matrix.shape[1]
    largest = jnp.max(matrix, axis=1)
    is_largest = matrix == _over_columns(largest, columns)
    before = jnp.where(is_largest, -_column_indices(columns), -columns)
    return largest, -jnp.max(before, axis=1)


def paired_with_max(pairs: Sequence[tuple[Array, Array]]) -> Array:
    """What is paired with the largest number of each row; with the first of equal ones."""
    (largest, chosen), *others = pairs
    for value, candidate in others:
        is_larger = value > largest
        largest = jnp.where(is_larger, value, largest)
        chosen = jnp.where(is_larger, candidate, chosen)
    return chosen


def look_up(table: Any, rows: Array, first: int, columns: int) -> Array:
    """Columns of rows of a table in shared memory, float32 [BATCH_TILE, columns].

    Args:
      table: float32 [n, m].
      rows: int32 [BATCH_TILE], each in [0, n).
      first: column.
      columns: how many.
    """
    shape = BATCH_TILE, columns
    gathered = plgpu.ShapeDtypeStruct(shape, jnp.float32, layout=_MATRIX)
    gather = plgpu.inline_mgpu(arg_types=(plgpu.RefType(), _MATRIX), return_type=gathered)
    return gather(_gather_from(first))(table, _over_columns(rows, columns))


def _over_columns(column: Array, columns: int) -> Array:
    """[BATCH_TILE] repeated to [BATCH_TILE, columns]."""
    value = lax.broadcast_in_dim(column, (BATCH_TILE, columns), (0,))
    return plgpu.layout_cast(value, _MATRIX)


def _column_indices(columns: int) -> Array:
    shape = BATCH_TILE, columns
    return plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=_MATRIX)


def _gather_from(first: int) -> Any:
    """The code by which each thread loads its own numbers, from a column of the table on."""
    ir, arith, vector = mosaic.ir, mosaic.arith, mosaic.vector  # type: ignore[attr-defined]

    def gather(_: Any, table: Any, rows: Any) -> Any:
        index = ir.IndexType.get()
        numbers = ir.VectorType.get((rows.layout.vector_length,), ir.F32Type.get())
        registers = np.empty_like(rows.registers)
        # Registers are vectors of numbers that are side by side in one row.
        places = rows.layout.thread_idxs(rows.shape)
        for i, (_, column) in zip(np.ndindex(registers.shape), places, strict=True):
            row = vector.extract(rows.registers[i], dynamic_position=[], static_position=[0])
            at = [
                arith.index_cast(index, row),
                arith.addi(column, arith.constant(index, first)),
            ]
            registers[i] = vector.load(numbers, table, at)
        array = fragmented_array.FragmentedArray
        return array(_registers=registers, _layout=rows.layout, _is_signed=None)

    return gather
