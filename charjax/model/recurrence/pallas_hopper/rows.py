"""Argmax, gather, and transposed loads and stores of the rows of a batch tile.

Pallas has none of these for Mosaic GPU. The numbers of a row are in
the registers of four threads of a warp, so that a reduction over a row is two shuffles, and every
thread can load and store its own numbers anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.mosaic.gpu import utils as mosaic
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE

_DIALECTS: Any = mosaic  # which imports those of MLIR
_ir, _arith, _vector = _DIALECTS.ir, _DIALECTS.arith, _DIALECTS.vector
_llvm, _memref = _DIALECTS.llvm, _DIALECTS.memref

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
    """Columns of rows of a table in shared or global memory, float32 [BATCH_TILE, columns].

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


def load_feature_major(ref: Any, columns: int) -> Array:
    """A block of global memory, float32 [columns, BATCH_TILE], as [BATCH_TILE, columns]."""
    shape = BATCH_TILE, columns
    loaded = plgpu.ShapeDtypeStruct(shape, jnp.float32, layout=_MATRIX)
    load = plgpu.inline_mgpu(arg_types=(plgpu.RefType(),), return_type=loaded)
    return load(partial(_load_transposed, shape))(ref)


def store_feature_major(ref: Any, value: Array) -> None:
    """Stores float32 [BATCH_TILE, columns] in a block of global memory, [columns, BATCH_TILE]."""
    plgpu.inline_mgpu(arg_types=(plgpu.RefType(), _MATRIX))(_store_transposed)(ref, value)


def _over_columns(column: Array, columns: int) -> Array:
    """[BATCH_TILE] repeated to [BATCH_TILE, columns]."""
    value = lax.broadcast_in_dim(column, (BATCH_TILE, columns), (0,))
    return plgpu.layout_cast(value, _MATRIX)


def _column_indices(columns: int) -> Array:
    shape = BATCH_TILE, columns
    return plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=_MATRIX)


def _gather_from(first: int) -> Any:
    """The code by which each thread loads its own numbers, from a column of the table on."""

    def gather(_: Any, table: Any, rows: Any) -> Any:
        registers = np.empty_like(rows.registers)
        for i, (_, column) in _places(rows.layout, rows.shape, registers):
            row = _vector.extract(rows.registers[i], dynamic_position=[], static_position=[0])
            at = [_arith.index_cast(_index(), row), _plus(column, first)]
            registers[i] = _vector.load(_numbers(rows.layout), table, at)
        return _fragmented(registers, rows.layout)

    return gather


def _load_transposed(shape: tuple[int, int], _: Any, ref: Any) -> Any:
    layout: Any = _MATRIX.to_mgpu()
    registers = np.empty(layout.registers_shape(shape), object)
    for i, (row, column) in _places(layout, shape, registers):
        numbers = _llvm.mlir_undef(_numbers(layout))
        for j in range(layout.vector_length):
            number = _memref.load(ref, [_plus(column, j), row])
            numbers = _vector.insert(number, numbers, dynamic_position=[], static_position=[j])
        registers[i] = numbers
    return _fragmented(registers, layout)


def _store_transposed(_: Any, ref: Any, value: Any) -> None:
    for i, (row, column) in _places(value.layout, value.shape, value.registers):
        for j in range(value.layout.vector_length):
            number = _vector.extract(value.registers[i], dynamic_position=[], static_position=[j])
            _memref.store(number, ref, [_plus(column, j), row])


def _places(layout: Any, shape: tuple[int, ...], registers: Any) -> Iterator[Any]:
    """Each register of a thread: its index, and the row and column of its first number.

    Registers are vectors of numbers that are side by side in one row.
    """
    return zip(np.ndindex(registers.shape), layout.thread_idxs(shape), strict=True)


def _plus(index: Any, offset: int) -> Any:
    return _arith.addi(index, _arith.constant(_index(), offset))


def _index() -> Any:
    return _ir.IndexType.get()


def _numbers(layout: Any) -> Any:
    return _ir.VectorType.get((layout.vector_length,), _ir.F32Type.get())


def _fragmented(registers: Any, layout: Any) -> Any:
    array = fragmented_array.FragmentedArray
    return array(_registers=registers, _layout=layout, _is_signed=None)
