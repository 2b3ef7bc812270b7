"""One CTA of the persistent kernels: its share of a product, and its part in barriers.

A CTA brings its part of the recurrent kernel into shared memory once. What a step needs
of all others goes through global memory, behind a barrier over all CTAs: a semaphore that
each of them counts up and waits for. So all must run at the same time, each on a multiprocessor
of its own, and no other kernel that waits for anything may run beside them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import utils as mosaic
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from charjax.model.cells import Gates
from charjax.model.recurrence.pallas_hopper.tiling import LANES, TILE, Spread

# Rows of 64 bfloat16 numbers, eight to a tile: how `wgmma` reads shared memory.
_TRANSFORMS = (plgpu.TilingTransform((8, TILE)), plgpu.SwizzleTransform(2 * TILE))
_SPINS = 20_000  # in interpret mode, so that a test which would hang fails instead
# What `plgpu.load` takes of a reference: an index before jax 0.12, and then all of it.
_WHOLE = ((),) if "idx" in inspect.signature(plgpu.load).parameters else ()


@dataclass(frozen=True)
class Block:
    """One CTA: which one, what it has, and how it waits for the others.

    Attributes:
      spread: of the product over the CTAs.
      group, member: which CTA this is.
      weights, operand, arrived: shared memory, and the barriers of the copies to it.
      partial: global memory for partial sums.
      counts: semaphores: of all CTAs, then of each group.
      flags: global memory in their place in interpret mode, which has none; else None.
    """

    spread: Spread
    group: Array
    member: Array
    weights: Any
    operand: Any
    arrived: Any
    partial: Any
    counts: Any
    flags: Any

    @property
    def at(self) -> Array:
        """The number of this CTA."""
        return self.group * self.spread.split + self.member

    def own(self, gate: int = 0) -> Any:
        """Where its units lie among [hidden], or those of a gate among [gates * hidden]."""
        return pl.ds(gate * self.spread.hidden + self.at * self.spread.units, self.spread.units)

    def read(self, ref: Any) -> Array:
        """A [batch, columns] block of global memory, in the layout of a product's sums."""
        if self.flags is not None:
            value: Array = ref[...]
        else:  # an optimized load is one that avoids conflicts of shared memory's banks
            value = plgpu.load(ref, *_WHOLE, layout=plgpu.Layout.WGMMA, optimized=False)
        return value

    def write(self, ref: Any, value: Array) -> None:
        """Stores such a block, or one in bfloat16."""
        if self.flags is not None or not hasattr(plgpu, "store"):  # as before jax 0.12
            ref[...] = value
        else:
            plgpu.store(ref, value, optimized=False)

    def arrive(self, turn: Array | int, among: Array | None = None) -> None:
        """Says that this CTA has come to a barrier for the `turn`-th time, from 1 on.

        What it wrote before is then seen by all that `wait`.

        Args:
          turn: how often.
          among: a group; None: all CTAs.
        """
        if self.flags is None:
            # A release by one thread, behind a barrier of all: their stores come before it.
            count = self.counts.at[0 if among is None else among + 1]
            plgpu.semaphore_signal(count, memory_scope="gpu")
        else:  # negative: fresh memory holds the largest number
            self.flags[0 if among is None else 1, self.at] = -jnp.int32(turn)

    def wait(self, turn: Array | int, among: Array | None = None) -> None:
        """Waits until all CTAs, or those of a group, have come to a barrier `turn` times."""
        members = self.spread.ctas if among is None else self.spread.split
        if self.flags is None:
            # Counts only rise: to wait for a multiple leaves nothing to be set back.
            count = self.counts.at[0 if among is None else among + 1]
            plgpu.semaphore_wait(count, turn * members, decrement=False, memory_scope="gpu")
            return
        row, first = (0, 0) if among is None else (1, among * members)

        def behind(spins: Array) -> Array:
            latest = jnp.max(self.flags[row, pl.ds(first, members)])
            return jnp.logical_and(latest > -jnp.int32(turn), spins < _SPINS)

        lax.while_loop(behind, lambda spins: spins + 1, jnp.int32(0))

    def fence(self) -> None:
        """Orders this CTA's plain stores to global memory with copies by TMA, of any CTA.

        They go by different ways (in PTX's words, proxies), which a release and an acquire
        alone do not order. So the writer calls it before it arrives, and the reader after
        it has waited.
        """
        if self.flags is None:
            plgpu.inline_mgpu()(_fence_proxies)()

    def bring_weights(self, blocks: Any, arrived: Any) -> None:
        """Brings this CTA's part of the recurrent kernel on chip, where it stays."""
        plgpu.copy_gmem_to_smem(blocks.at[self.at], self.weights, arrived.at[0])
        plgpu.barrier_wait(arrived.at[0])

    def multiply(self, source: Any, turn: Array | int) -> Gates:
        """One step's product: float32 [batch, units] for each of `spread.outs`.

        Args:
          source: bfloat16 [batch, sums] in global memory, written by all CTAs.
          turn: how often this was called, this time included.
        """
        spread = self.spread
        together = "peer" if spread.peers > 1 and self.flags is None else None
        for piece in range(spread.pieces):
            columns = pl.ds(self.member * spread.part + piece * spread.piece, spread.piece)
            plgpu.copy_gmem_to_smem(
                source.at[:, columns],
                self.operand.at[piece],
                self.arrived.at[piece],
                collective_axes=together,
            )
        sums = self._sums() if self.flags is None else self._sums_of_values()
        if spread.split > 1:
            sums = self._add_parts(sums, turn)
        starts = range(0, spread.outs * spread.units, spread.units)
        return tuple(sums[:, start : start + spread.units] for start in starts)

    def _sums(self) -> Array:
        def on_tensor_cores(sums: Any) -> Array:
            for piece in range(self.spread.pieces):
                plgpu.barrier_wait(self.arrived.at[piece])
                columns = pl.ds(piece * self.spread.piece, self.spread.piece)
                weights = self.weights.at[:, columns].transpose((1, 0))
                plgpu.wgmma(sums, self.operand.at[piece], weights)
            value: Array = sums[...]
            return value

        shape = LANES, self.spread.columns
        value: Array = pl.run_scoped(on_tensor_cores, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))
        return value

    def _sums_of_values(self) -> Array:
        """The same in interpret mode, whose `wgmma` knows no transposed operand."""
        for piece in range(self.spread.pieces):
            plgpu.barrier_wait(self.arrived.at[piece])
        operand = lax.concatenate([self.operand[i] for i in range(self.spread.pieces)], 1)
        over = (((1,), (1,)), ((), ()))
        return lax.dot_general(operand, self.weights[...], over, preferred_element_type=jnp.float32)

    def _add_parts(self, sums: Array, turn: Array | int) -> Array:
        """Adds up the group's parts of this CTA's own sums, in one order at every run."""
        own = self.spread.outs * self.spread.units
        self.write(self.partial.at[self.at], sums)
        self.arrive(turn, self.group)
        self.wait(turn, self.group)
        members = range(self.spread.split)
        rows = [self.partial.at[self.group * self.spread.split + by] for by in members]
        parts = [self.read(row.at[:, pl.ds(self.member * own, own)]) for row in rows]
        return sum(parts[1:], start=parts[0])


def _fence_proxies(_: Any) -> None:
    nvvm = mosaic.nvvm  # type: ignore[attr-defined]
    nvvm.fence_proxy(nvvm.ProxyKind.async_)


def run(
    body: Callable[..., None],
    spread: Spread,
    weights: Array,
    inputs: tuple[Array, ...],
    out: tuple[jax.ShapeDtypeStruct, ...],
    interpret: Any,
) -> list[Array]:
    """Runs a kernel, all its CTAs at the same time.

    Args:
      body: called with the `Block`, then with references to the inputs and the outputs.
      spread: of the product over the CTAs.
      weights: `persistent_plan.blocks` of its matrix.
      inputs: in global memory.
      out: what the outputs are.
      interpret: parameters of Pallas' interpret mode for GPUs, or None.
    """
    on_chip = (
        plgpu.SMEM((spread.columns, spread.part), jnp.bfloat16, transforms=_TRANSFORMS),
        plgpu.SMEM((spread.pieces, LANES, spread.piece), jnp.bfloat16, transforms=_TRANSFORMS),
        plgpu.Barrier(num_barriers=spread.pieces),
        plgpu.Barrier(num_barriers=1),
    )
    partial = (spread.ctas, LANES, spread.columns) if spread.split > 1 else (1, 1, 1)
    between = [jax.ShapeDtypeStruct(partial, jnp.float32)]
    if interpret is not None:
        between.append(jax.ShapeDtypeStruct((2, spread.ctas), jnp.int32))

    def start(blocks: Any, *refs: Any) -> None:
        *arrays, weights, operand, arrived, weights_arrived = refs
        flags = arrays.pop() if interpret is not None else None
        partial = arrays.pop()
        counts = None
        if interpret is None:
            counts = pl.get_global(plgpu.SemaphoreType.REGULAR((1 + spread.groups,)))
        where = _where(spread, interpret)
        block = Block(spread, *where, weights, operand, arrived, partial, counts, flags)
        block.bring_weights(blocks, weights_arrived)
        body(block, *arrays)

    on_all = plgpu.kernel(
        start,
        out_type=(*out, *between),
        scratch_types=on_chip,
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        **_grid(spread, interpret),
    )
    return list(on_all(weights, *inputs))[: len(out)]


def _grid(spread: Spread, interpret: Any) -> dict[str, Any]:
    """How the CTAs are started."""
    if interpret is not None:  # it runs only the CTAs of one cluster at the same time
        return {"cluster": (spread.ctas,), "cluster_names": ("cta",), "interpret": interpret}
    grid = (spread.groups // spread.peers, spread.split)
    names = {"grid_names": ("groups", "member"), "cluster_names": ("peer",)}
    return {"grid": grid, "cluster": (spread.peers,), **names}


def _where(spread: Spread, interpret: Any) -> tuple[Array, Array]:
    """This CTA's group, and which member of it it is."""
    if interpret is not None:
        cta = lax.axis_index("cta")
        return cta // spread.split, cta % spread.split
    group = lax.axis_index("groups") * spread.peers + lax.axis_index("peer")
    return group, lax.axis_index("member")
