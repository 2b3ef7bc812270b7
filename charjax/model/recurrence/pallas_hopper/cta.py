"""One CTA of a persistent kernel: its rows and units, and the barriers at which CTAs meet.

What CTAs exchange at a time step goes through global memory (in practice the L2 cache), behind a
barrier over the grid: a semaphore on which every CTA releases an increment and which every CTA
acquires. So all CTAs must be resident at once, and no other kernel may occupy their SMs while it
waits for anything.

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

* the operand in shared memory: each thread waits for its wgmma before `accumulate` in
  `tile_matmul.py` returns; the next copies, of any tile, follow that tile's `wait`. All threads
  arrive at the copies' barriers.
* the exchange in global memory: stored, `arrive` and `wait` at the grid's barrier, copied. A slot
  is written once; the sampling kernel (`decode_kernel.py`), which reuses slots, says why it may.
* partial sums: stored, `arrive` and `wait` at the split-K group's barrier, loaded; stored again
  after the `wait` at the grid's next barrier, where each CTA arrives after it has loaded.
* the weights, and the table of the sampling kernel: copied once; each thread waits for the copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import utils as mosaic
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE, Tiling

# jax 0.12 added `plgpu.store`, and removed the index argument of `plgpu.load`.
_STORE: Callable[..., None] | None = getattr(plgpu, "store", None)
_LOAD_INDEX = ((),) if _STORE is None else ()


class Scratch(NamedTuple):
    """Shared memory of a CTA, for all its batch tiles.

    Attributes:
      weights: bfloat16 [n_per_cta, k_per_cta], the CTA's tile of the right operand.
      operand: bfloat16 [k_chunks, BATCH_TILE, k_per_chunk].
      copied: barriers of the TMA copies into `operand`, one per chunk.
      loaded: barrier of `Cta.load_shared`.
    """

    weights: Any
    operand: Any
    copied: Any
    loaded: Any


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

    def load_shared(self, ref: Any, shared: Any) -> None:
        """Copies global memory into shared memory, and waits."""
        loaded = self.scratch.loaded.at[0]
        plgpu.copy_gmem_to_smem(ref, shared, loaded)
        plgpu.barrier_wait(loaded)

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


def _emit_thread_barrier(_: Any) -> None:
    mosaic.warpgroup_barrier()


def _emit_proxy_fence(_: Any) -> None:
    # Of global memory alone. In shared memory only the async proxy accesses the operand: TMA
    # writes it, wgmma reads it. A fence there, too, would take a quarter of a microsecond.
    nvvm = mosaic.nvvm  # type: ignore[attr-defined]
    nvvm.fence_proxy(nvvm.ProxyKind.async_global)
