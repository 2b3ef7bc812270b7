"""One CTA of a persistent kernel: its part of a batch tile's matmul and barriers.

A CTA copies its tile of the weights into shared memory once. What CTAs exchange at a time step
goes through global memory (in practice the L2 cache), behind a barrier over the grid: a
semaphore on which every CTA releases an increment and which every CTA acquires. So all CTAs must
be resident at once, and no other kernel may occupy their SMs while it waits for anything.

A launch may have several batch groups. Each has a grid of its own, which is what the grid means
here, and other batch rows; nothing goes from one group to another. A batch group may have several
batch tiles, each with barriers of its own, so that a CTA can work on one tile while another tile's
barrier completes. The tiles share the CTA's shared memory.

All rows of a batch may need several passes: a CTA has as many batch tiles in each, with the same
shared memory, barriers and place for partial sums, but other rows. A barrier counts on from pass to
pass. Before a CTA passes the wait for turn n it has arrived at most n times; so the count is n
times the CTAs only when each has arrived n times: a fast CTA cannot stand in for one that is still
in the pass before.

The threads of a CTA meet just before it signals in `arrive`, at the end of `wait`, and nowhere
else. That orders all accesses of several threads to the same memory:

* the operand in shared memory: each thread waits for its wgmma before `accumulate` returns; the
  next copies, of any tile, follow that tile's `wait`. All threads arrive at the copies' barriers.
* the exchange in global memory: stored, `arrive` and `wait` at the grid's barrier, copied. A slot
  is written once; the sampling kernel (`decode_kernel.py`), which reuses slots, says why it may.
* partial sums: stored, `arrive` and `wait` at the split-K group's barrier, loaded; stored again
  after the `wait` at the grid's next barrier, where each CTA arrives after it has loaded.
* the weights, and the table of the sampling kernel: copied once; each thread waits for the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import utils as mosaic
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from charjax.model.cells import Gates
from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE, Tiling

# jax 0.12 added `plgpu.store`, and removed the index argument of `plgpu.load`.
_STORE: Callable[..., None] | None = getattr(plgpu, "store", None)
_LOAD_INDEX = ((),) if _STORE is None else ()

T = TypeVar("T")
# Work on a batch tile. It yields where it has arrived at a barrier and is about to wait for it:
# the CTA goes on with other tiles, which may overwrite the operand in shared memory.
TileWork: TypeAlias = Generator[None, None, T]


class Scratch(NamedTuple):
    """Shared memory of a CTA, for all its batch tiles.

    Attributes:
      weights: bfloat16 [n_per_cta, k_per_cta], the CTA's tile of the right operand.
      operand: bfloat16 [k_chunks, BATCH_TILE, k_per_chunk].
      copied: barriers of the TMA copies into `operand`, one per chunk.
      weights_copied: barrier of the copy into `weights`.
    """

    weights: Any
    operand: Any
    copied: Any
    weights_copied: Any


class Position(NamedTuple):
    """Which CTA of a launch.

    Attributes:
      batch_group: index of its batch group.
      group: index of its split-K group in the batch group.
      member: index within the split-K group.
    """

    batch_group: Array | int
    group: Array
    member: Array


class Barrier(NamedTuple):
    """A barrier of a batch tile.

    Attributes:
      semaphore: its index among those of the tile.
      members: how many CTAs arrive at it.
      first: index of the first of these in the grid.
    """

    semaphore: Array | int
    members: int
    first: Array | int


@dataclass(frozen=True)
class Cta:
    """One CTA and one of its batch tiles, as a kernel's body sees them.

    Attributes:
      tiling: of the matmul over the grid.
      position: of this CTA.
      tile: index of the batch tile in the batch group.
      scratch: shared memory.
      partial_sums: global memory, float32 [ctas, rows of a pass, n_per_cta].
      arrivals: the tile's semaphores of all batch groups, each with `Tiling.semaphores` of them:
        first that of the grid, then one for each split-K group.
      batch_pass: index of the pass.
    """

    tiling: Tiling
    position: Position
    tile: int
    scratch: Scratch
    partial_sums: Any
    arrivals: Any
    batch_pass: Array | int = 0

    @property
    def index(self) -> Array:
        """Index of this CTA in the grid."""
        return self.position.group * self.tiling.split_k + self.position.member

    @property
    def tile_of_pass(self) -> Array | int:
        """Index of the batch tile among those of all batch groups in a pass."""
        return self.position.batch_group * self.tiling.batch_tiles + self.tile

    @property
    def first_row(self) -> Array | int:
        """The tile's first row in an axis [batch]."""
        return self.batch_pass * self.tiling.rows + self.tile_of_pass * BATCH_TILE

    @property
    def rows(self) -> Any:
        """Slice of the tile's rows in an axis [batch]."""
        return pl.ds(self.first_row, BATCH_TILE)

    def columns(self, gate: int = 0) -> Any:
        """Slice of this CTA's units of a gate in an axis [gates * hidden]."""
        return pl.ds(gate * self.tiling.hidden + self.index * self.tiling.units, self.tiling.units)

    def load(self, ref: Any, layout: Any = plgpu.Layout.WGMMA) -> Array:
        """Global memory into registers: of [BATCH_TILE, columns], in the layout of accumulators."""
        # Unoptimized: only loads from shared memory have a way around bank conflicts.
        return plgpu.load(ref, *_LOAD_INDEX, layout=layout, optimized=False)

    def store(self, ref: Any, value: Array) -> None:
        """Registers in the layout of accumulators into global memory."""
        if _STORE is None:
            ref[...] = value
        else:
            _STORE(ref, value, optimized=False)

    @property
    def grid(self) -> Barrier:
        """The barrier of all CTAs."""
        return Barrier(0, self.tiling.ctas, 0)

    @property
    def split_k_group(self) -> Barrier:
        """The barrier of this CTA's split-K group."""
        split_k, group = self.tiling.split_k, self.position.group
        return Barrier(group + 1, split_k, group * split_k)

    def first_ctas(self, count: int) -> Barrier:
        """The barrier of the first CTAs, so many, in a kernel without split-K."""
        # The last semaphore: from 32 CTAs on in another cache line than the grid's.
        return Barrier(self.tiling.semaphores - 1, count, 0)

    def first_turn(self, turns: int) -> Array | int:
        """The first `turn` of this pass at a barrier that has so many turns in a pass."""
        return self.batch_pass * turns + 1

    def arrive(self, barrier: Barrier, turn: Array | int) -> None:
        """Arrives at a barrier; CTAs that `wait` for it see the stores before it.

        Args:
          barrier: of the tile.
          turn: how many times this CTA has arrived at the barrier, in all passes, this time
            included.
        """
        del turn  # the semaphore counts; the tests' interpreter, which has none, needs it
        # The signal is a release by one thread after a barrier of the CTA's threads, so it
        # covers the loads and stores of all of them.
        plgpu.inline_mgpu()(_emit_thread_barrier)()
        plgpu.semaphore_signal(self._semaphore(barrier), memory_scope="gpu")

    def wait(self, barrier: Barrier, turn: Array | int) -> None:
        """Waits until all members of a barrier have arrived `turn` times."""
        # An acquire by one thread, before a barrier of the CTA's threads. The count never
        # decreases, so no CTA can miss it, and nothing resets it.
        semaphore, count = self._semaphore(barrier), turn * barrier.members
        plgpu.semaphore_wait(semaphore, count, decrement=False, memory_scope="gpu")

    def _semaphore(self, barrier: Barrier) -> Any:
        first = self.position.batch_group * self.tiling.semaphores
        return self.arrivals.at[first + barrier.semaphore]

    def fence_async_proxy(self) -> None:
        """Orders this CTA's loads and stores with TMA copies, of any CTA.

        TMA accesses memory through the async proxy, which release and acquire do not order
        with the generic proxy of loads and stores. The writer calls this before it arrives,
        the reader after it has waited.
        """
        plgpu.inline_mgpu()(_emit_proxy_fence)()

    def load_weights(self, packed: Any) -> None:
        """Copies this CTA's tile of the weights into shared memory."""
        weights, copied = self.scratch.weights, self.scratch.weights_copied
        plgpu.copy_gmem_to_smem(packed.at[self.index], weights, copied.at[0])
        plgpu.barrier_wait(copied.at[0])

    def copy_operand(self, operand: Any, rows: int = BATCH_TILE) -> None:
        """Begins to copy this CTA's part of the left operand, for the tile's next `matmul`.

        What is loaded between the two overlaps with the copies.

        Args:
          operand: global memory, bfloat16 [batch, K], written by all CTAs.
          rows: how many of the tile's rows are copied, a multiple of 8: the first ones. The others
            mean nothing in the result.
        """
        tiling, operands = self.tiling, self.scratch.operand
        if rows < BATCH_TILE:
            operands = operands.at[:, pl.ds(0, rows)]
        copied = pl.ds(self.first_row, rows)
        for chunk in range(tiling.k_chunks):
            start = self.position.member * tiling.k_per_cta + chunk * tiling.k_per_chunk
            plgpu.copy_gmem_to_smem(
                operand.at[copied, pl.ds(start, tiling.k_per_chunk)],
                operands.at[chunk],
                self.scratch.copied.at[chunk],
            )

    def matmul(self, turn: Array | int) -> TileWork[Gates]:
        """The tile's matmul of a time step: float32 [BATCH_TILE, units] per output of a unit.

        Args:
          turn: how many matmuls the CTA has done for tiles of this index, in all passes, this one
            included.
        """
        sums = self.accumulate()
        if self.tiling.split_k > 1:
            sums = yield from self._reduce_split_k(sums, turn)
        return self.by_output(sums)

    def by_output(self, sums: Array) -> Gates:
        """The final sums of this CTA's units, for each output of a unit."""
        starts = range(0, self.tiling.outputs_per_unit * self.tiling.units, self.tiling.units)
        return tuple(sums[:, start : start + self.tiling.units] for start in starts)

    def accumulate(self) -> Array:
        """This CTA's part of the tile's matmul, as the copies complete: [BATCH_TILE, n_per_cta]."""

        def with_accumulator(sums: Any) -> Array:
            for chunk in range(self.tiling.k_chunks):
                plgpu.barrier_wait(self.scratch.copied.at[chunk])
                k = pl.ds(chunk * self.tiling.k_per_chunk, self.tiling.k_per_chunk)
                weights = self.scratch.weights.at[:, k].transpose((1, 0))
                plgpu.wgmma(sums, self.scratch.operand.at[chunk], weights)
            return sums[...]

        shape = BATCH_TILE, self.tiling.n_per_cta
        accumulator = plgpu.WGMMAAccumulatorRef(shape, jnp.float32)
        return pl.run_scoped(with_accumulator, accumulator)

    def _reduce_split_k(self, sums: Array, turn: Array | int) -> TileWork[Array]:
        """Sums the group's partial sums of this CTA's units, always in the same order.

        A CTA overwrites its partial sums when it has passed the tile's next barrier of the grid,
        where each CTA arrives, in this pass or in the next, after it has read those of its group.
        """
        group, n = self.split_k_group, self.tiling.outputs_per_unit * self.tiling.units
        rows = pl.ds(self.tile_of_pass * BATCH_TILE, BATCH_TILE)
        columns = pl.ds(self.position.member * n, n)
        self.store(self.partial_sums.at[self.index, rows], sums)
        self.arrive(group, turn)
        yield
        self.wait(group, turn)
        members = range(group.members)
        parts = [self.load(self.partial_sums.at[group.first + m, rows, columns]) for m in members]
        return sum(parts[1:], start=parts[0])


def _emit_thread_barrier(_: Any) -> None:
    mosaic.warpgroup_barrier()


def _emit_proxy_fence(_: Any) -> None:
    # Of global memory alone. In shared memory only the async proxy accesses the operand: TMA
    # writes it, wgmma reads it. A fence there, too, would take a quarter of a microsecond.
    nvvm = mosaic.nvvm  # type: ignore[attr-defined]
    nvvm.fence_proxy(nvvm.ProxyKind.async_global)
