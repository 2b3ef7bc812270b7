"""One CTA of a persistent kernel: its tile of the matmul, and its part in the barriers.

`launch` starts one CTA per SM. A CTA copies its tile of the weights into shared memory once.
What CTAs exchange at a time step goes through global memory (in practice the L2 cache),
behind a barrier over the whole grid: a semaphore on which every CTA releases an increment and
which every CTA acquires. So all CTAs must be resident at once, and no other kernel may occupy
their SMs while it waits for anything.
"""

from __future__ import annotations

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
from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE, SWIZZLE, Tiling

# jax 0.12 added `plgpu.store`, and removed the index argument of `plgpu.load`.
_STORE: Callable[..., None] | None = getattr(plgpu, "store", None)
_LOAD_INDEX = ((),) if _STORE is None else ()
# The layout in shared memory from which wgmma reads its operands.
_TRANSFORMS = (plgpu.TilingTransform((8, SWIZZLE)), plgpu.SwizzleTransform(2 * SWIZZLE))
_MAX_SPINS = 1_000_000  # of a wait in interpret mode: a deadlock fails a test, not hangs it


@dataclass(frozen=True)
class Cta:
    """One CTA, as a kernel's body sees it.

    Attributes:
      tiling: of the matmul over the grid.
      group: index of this CTA's split-K group.
      member: index within the group.
      weights: shared memory, bfloat16 [n, k]: its tile of the right operand.
      operand: shared memory, bfloat16 [k_chunks, BATCH_TILE, k_per_chunk].
      copied: barriers of the TMA copies into `operand`, one per chunk.
      partial_sums: global memory, float32 [ctas, BATCH_TILE, n].
      arrivals: semaphores, of the grid and then of each group.
    """

    tiling: Tiling
    group: Array
    member: Array
    weights: Any
    operand: Any
    copied: Any
    partial_sums: Any
    arrivals: Any

    @property
    def index(self) -> Array:
        """Index of this CTA in the grid."""
        return self.group * self.tiling.split_k + self.member

    def columns(self, gate: int = 0) -> Any:
        """Slice of this CTA's units of a gate in an axis [gates * hidden]."""
        return pl.ds(gate * self.tiling.hidden + self.index * self.tiling.units, self.tiling.units)

    def load(self, ref: Any) -> Array:
        """Global memory [BATCH_TILE, columns] into registers, in the layout of accumulators."""
        # Unoptimized: only loads from shared memory have a way around bank conflicts.
        value: Array = plgpu.load(ref, *_LOAD_INDEX, layout=plgpu.Layout.WGMMA, optimized=False)
        return value

    def store(self, ref: Any, value: Array) -> None:
        """Registers in the layout of accumulators into global memory."""
        if _STORE is None:
            ref[...] = value
        else:
            _STORE(ref, value, optimized=False)

    def arrive(self, turn: Array | int, group: Array | None = None) -> None:
        """Arrives at a barrier; stores before it are visible to CTAs that `wait` for it.

        Args:
          turn: how many times this CTA has arrived at the barrier, this time included.
          group: of the barrier; None: the grid.
        """
        del turn
        # The signal is a release by one thread after a barrier of the CTA's threads, so it
        # covers the stores of all of them.
        semaphore = self.arrivals.at[0 if group is None else group + 1]
        plgpu.semaphore_signal(semaphore, memory_scope="gpu")

    def wait(self, turn: Array | int, group: Array | None = None) -> None:
        """Waits until all CTAs of the grid, or of a group, have arrived `turn` times."""
        # An acquire. The count never decreases, so no CTA can miss it, and nothing resets it.
        semaphore = self.arrivals.at[0 if group is None else group + 1]
        count = turn * (self.tiling.ctas if group is None else self.tiling.split_k)
        plgpu.semaphore_wait(semaphore, count, decrement=False, memory_scope="gpu")

    def fence_async_proxy(self) -> None:
        """Orders this CTA's loads and stores with TMA copies, of any CTA.

        TMA accesses memory through the async proxy, which release and acquire do not order
        with the generic proxy of loads and stores. The writer calls this before it arrives,
        the reader after it has waited.
        """
        plgpu.inline_mgpu()(_emit_proxy_fence)()

    def load_weights(self, packed: Any, copied: Any) -> None:
        """Copies this CTA's tile of the weights into shared memory."""
        plgpu.copy_gmem_to_smem(packed.at[self.index], self.weights, copied.at[0])
        plgpu.barrier_wait(copied.at[0])

    def matmul(self, operand: Any, turn: Array | int) -> Gates:
        """The grid's matmul of a time step: float32 [BATCH_TILE, units] per output of a unit.

        Args:
          operand: global memory, bfloat16 [BATCH_TILE, K], written by all CTAs.
          turn: how many matmuls the kernel has done, this one included.
        """
        tiling = self.tiling
        for chunk in range(tiling.k_chunks):
            start = self.member * tiling.k_per_cta + chunk * tiling.k_per_chunk
            plgpu.copy_gmem_to_smem(
                operand.at[:, pl.ds(start, tiling.k_per_chunk)],
                self.operand.at[chunk],
                self.copied.at[chunk],
                collective_axes="cluster" if tiling.cluster > 1 else None,
            )
        sums = self._accumulate()
        if tiling.split_k > 1:
            sums = self._reduce_split_k(sums, turn)
        starts = range(0, tiling.outputs_per_unit * tiling.units, tiling.units)
        return tuple(sums[:, start : start + tiling.units] for start in starts)

    def _accumulate(self) -> Array:
        """`operand @ weights.T` of this CTA, chunk by chunk as the copies complete."""

        def with_accumulator(sums: Any) -> Array:
            for chunk in range(self.tiling.k_chunks):
                plgpu.barrier_wait(self.copied.at[chunk])
                k = pl.ds(chunk * self.tiling.k_per_chunk, self.tiling.k_per_chunk)
                weights = self.weights.at[:, k].transpose((1, 0))
                plgpu.wgmma(sums, self.operand.at[chunk], weights)
            value: Array = sums[...]
            return value

        shape = BATCH_TILE, self.tiling.n_per_cta
        accumulator = plgpu.WGMMAAccumulatorRef(shape, jnp.float32)
        value: Array = pl.run_scoped(with_accumulator, accumulator)
        return value

    def _reduce_split_k(self, sums: Array, turn: Array | int) -> Array:
        """Sums the group's partial sums of this CTA's units, always in the same order."""
        split_k = self.tiling.split_k
        n = self.tiling.outputs_per_unit * self.tiling.units
        self.store(self.partial_sums.at[self.index], sums)
        self.arrive(turn, self.group)
        self.wait(turn, self.group)
        rows = [self.partial_sums.at[self.group * split_k + m] for m in range(split_k)]
        parts = [self.load(row.at[:, pl.ds(self.member * n, n)]) for row in rows]
        return sum(parts[1:], start=parts[0])


class InterpretedCta(Cta):
    """A CTA in Pallas' interpret mode, which has no semaphores, layouts or multicast.

    `arrivals` is global memory, int32 [2, ctas]: how often each CTA has arrived at the
    barrier of the grid and of its group, negative since it starts with the largest integer.
    """

    def load(self, ref: Any) -> Array:
        """As on a GPU, without a layout."""
        value: Array = ref[...]
        return value

    def store(self, ref: Any, value: Array) -> None:
        """As on a GPU."""
        ref[...] = value

    def arrive(self, turn: Array | int, group: Array | None = None) -> None:
        """Writes this CTA's count."""
        self.arrivals[0 if group is None else 1, self.index] = -jnp.int32(turn)

    def wait(self, turn: Array | int, group: Array | None = None) -> None:
        """Polls the counts of all members."""
        split_k = self.tiling.split_k
        members = pl.ds(0, self.tiling.ctas) if group is None else pl.ds(group * split_k, split_k)

        def is_behind(spins: Array) -> Array:
            latest = jnp.max(self.arrivals[0 if group is None else 1, members])
            return jnp.logical_and(latest > -jnp.int32(turn), spins < _MAX_SPINS)

        lax.while_loop(is_behind, lambda spins: spins + 1, jnp.int32(0))

    def fence_async_proxy(self) -> None:
        """Nothing: interpreted copies need no fence."""

    def _accumulate(self) -> Array:
        # The interpreted wgmma does not take a transposed operand.
        for chunk in range(self.tiling.k_chunks):
            plgpu.barrier_wait(self.copied.at[chunk])
        operand = lax.concatenate([self.operand[i] for i in range(self.tiling.k_chunks)], 1)
        contract_k = (((1,), (1,)), ((), ()))
        return lax.dot_general(
            operand, self.weights[...], contract_k, preferred_element_type=jnp.float32
        )


def _emit_proxy_fence(_: Any) -> None:
    nvvm = mosaic.nvvm  # type: ignore[attr-defined]
    nvvm.fence_proxy(nvvm.ProxyKind.async_)


def launch(
    body: Callable[..., None],
    tiling: Tiling,
    weights: Array,
    inputs: tuple[Array, ...],
    out_types: tuple[jax.ShapeDtypeStruct, ...],
    interpret: Any,
) -> list[Array]:
    """Runs a kernel with one CTA per SM.

    Args:
      body: called with the `Cta`, then with references to the inputs and the outputs.
      tiling: of the matmul over the grid.
      weights: `pack_weights` of the matmul's right operand.
      inputs: in global memory.
      out_types: of the outputs.
      interpret: parameters of Pallas' interpret mode for GPUs; None: run on a GPU.
    """
    partial_sums = (tiling.ctas, BATCH_TILE, tiling.n_per_cta) if tiling.split_k > 1 else (1, 1, 1)
    workspace = [jax.ShapeDtypeStruct(partial_sums, jnp.float32)]
    if interpret is not None:
        workspace.append(jax.ShapeDtypeStruct((2, tiling.ctas), jnp.int32))

    def kernel(packed: Any, *refs: Any) -> None:
        *arrays, weights, operand, copied, weights_copied = refs
        if interpret is None:
            arrivals = pl.get_global(plgpu.SemaphoreType.REGULAR((1 + tiling.groups,)))
        else:
            arrivals = arrays.pop()
        partial_sums = arrays.pop()
        kind = Cta if interpret is None else InterpretedCta
        position = _group_and_member(tiling, interpret)
        cta = kind(tiling, *position, weights, operand, copied, partial_sums, arrivals)
        cta.load_weights(packed, weights_copied)
        body(cta, *arrays)

    run = plgpu.kernel(
        kernel,
        out_type=(*out_types, *workspace),
        scratch_types=_scratch(tiling),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        **_grid(tiling, interpret),
    )
    return list(run(weights, *inputs))[: len(out_types)]


def _scratch(tiling: Tiling) -> tuple[Any, ...]:
    """Shared memory for the two operands, and the barriers of the copies to them."""
    weights = tiling.n_per_cta, tiling.k_per_cta
    operand = tiling.k_chunks, BATCH_TILE, tiling.k_per_chunk
    return (
        *(plgpu.SMEM(shape, jnp.bfloat16, transforms=_TRANSFORMS) for shape in (weights, operand)),
        plgpu.Barrier(num_barriers=tiling.k_chunks),
        plgpu.Barrier(num_barriers=1),
    )


def _grid(tiling: Tiling, interpret: Any) -> dict[str, Any]:
    if interpret is not None:  # which runs in parallel only the CTAs of one cluster
        return {"cluster": (tiling.ctas,), "cluster_names": ("cta",), "interpret": interpret}
    grid = (tiling.groups // tiling.cluster, tiling.split_k)
    names = {"grid_names": ("clusters", "member"), "cluster_names": ("cluster",)}
    return {"grid": grid, "cluster": (tiling.cluster,), **names}


def _group_and_member(tiling: Tiling, interpret: Any) -> tuple[Array, Array]:
    """The split-K group of this CTA, and its index in the group."""
    if interpret is not None:
        cta = lax.axis_index("cta")
        return cta // tiling.split_k, cta % tiling.split_k
    group = lax.axis_index("clusters") * tiling.cluster + lax.axis_index("cluster")
    return group, lax.axis_index("member")
