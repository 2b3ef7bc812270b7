"""The matmul of one batch tile at a time step, as one CTA computes its part.

The CTA has its tile of the right operand in shared memory from the start; its part of the left
one is copied there for each matmul. With split-K, the CTAs of a group add their partial sums.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from charjax.model.cells import Gates
from charjax.model.recurrence.pallas_hopper.cta import Cta
from charjax.model.recurrence.pallas_hopper.schedule import TileWork
from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE


def copy_operand(cta: Cta, operand: Any, rows: int = BATCH_TILE) -> None:
    """Begins to copy the CTA's part of the left operand, for the tile's next `matmul`.

    What is loaded between the two overlaps with the copies.

    Args:
      cta: the CTA and its tile.
      operand: global memory, bfloat16 [batch, K], written by all CTAs.
      rows: how many of the tile's rows are copied, a multiple of 8: the first ones. The others
        mean nothing in the result.
    """
    tiling, operands = cta.tiling, cta.scratch.operand
    if rows < BATCH_TILE:
        operands = operands.at[:, pl.ds(0, rows)]
    copied = pl.ds(cta.first_row, rows)
    for chunk in range(tiling.k_chunks):
        start = cta.position.member * tiling.k_per_cta + chunk * tiling.k_per_chunk
        plgpu.copy_gmem_to_smem(
            operand.at[copied, pl.ds(start, tiling.k_per_chunk)],
            operands.at[chunk],
            cta.scratch.copied.at[chunk],
        )


def matmul(cta: Cta, turn: Array | int) -> TileWork[Gates]:
    """The tile's matmul of a time step: float32 [BATCH_TILE, units] per output of a unit.

    Args:
      cta: the CTA and its tile.
      turn: how many matmuls the CTA has done for tiles of this index, in all passes, this one
        included.
    """
    sums = accumulate(cta)
    if cta.tiling.split_k > 1:
        sums = yield from _reduce_split_k(cta, sums, turn)
    return by_output(cta, sums)


def by_output(cta: Cta, sums: Array) -> Gates:
    """The final sums of the CTA's units, for each output of a unit."""
    units = cta.tiling.units
    starts = range(0, cta.tiling.outputs_per_unit * units, units)
    return tuple(sums[:, start : start + units] for start in starts)


def accumulate(cta: Cta) -> Array:
    """The CTA's part of the tile's matmul, as the copies complete: [BATCH_TILE, n_per_cta]."""

    def with_accumulator(sums: Any) -> Array:
        for chunk in range(cta.tiling.k_chunks):
            plgpu.barrier_wait(cta.scratch.copied.at[chunk])
            k = pl.ds(chunk * cta.tiling.k_per_chunk, cta.tiling.k_per_chunk)
            weights = cta.scratch.weights.at[:, k].transpose((1, 0))
            plgpu.wgmma(sums, cta.scratch.operand.at[chunk], weights)
        return sums[...]

    shape = BATCH_TILE, cta.tiling.n_per_cta
    return pl.run_scoped(with_accumulator, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))


def _reduce_split_k(cta: Cta, sums: Array, turn: Array | int) -> TileWork[Array]:
    """Sums the group's partial sums of the CTA's units, always in the same order.

    A CTA overwrites its partial sums when it has passed the tile's next barrier of the grid,
    where each CTA arrives, in this pass or in the next, after it has read those of its group.
    """
    group, n = cta.split_k_group, cta.tiling.outputs_per_unit * cta.tiling.units
    rows = pl.ds(cta.tile_of_pass * BATCH_TILE, BATCH_TILE)
    columns = pl.ds(cta.position.member * n, n)
    cta.store(cta.partial_sums.at[cta.index, rows], sums)
    cta.arrive(group, turn)
    yield
    cta.wait(group, turn)
    members = range(group.members)
    parts = [cta.load(cta.partial_sums.at[group.first + m, rows, columns]) for m in members]
    return sum(parts[1:], start=parts[0])
