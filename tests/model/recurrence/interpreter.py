"""The persistent kernels in Pallas' interpret mode, on a machine without a GPU.

All CTAs run in parallel, as one cluster, with barriers in global memory.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from charjax.model.recurrence.pallas_hopper import decode_kernel, kernels, rows, tile_matmul
from charjax.model.recurrence.pallas_hopper import launch as on_gpu
from charjax.model.recurrence.pallas_hopper.cta import Cta, Position
from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE

MAX_SPINS = 1_000_000  # of a wait: a deadlock fails a test, not hangs it
OPEN = -(2**31)  # a count for which no CTA waits


class InterpretedCta(Cta):
    """A CTA without semaphores and layouts, which interpret mode does not have.

    `arrivals` is global memory, int32 [batch tiles of a pass, 2, ctas]: how often each CTA has
    arrived at a tile's barrier of the grid, and at its other one. Counts are negative, since
    interpret mode fills new memory with the largest integer.
    """

    def load(self, ref, layout=None):
        return ref[...]

    def store(self, ref, value):
        ref[...] = value

    def arrive(self, barrier, turn):
        at, count = (self.tile_of_pass, slot_of(barrier), self.index), -jnp.int32(turn)
        before = self.arrivals[at]
        is_next = jnp.where(count == -1, before > 0, before == count + 1)
        # A GPU counts by itself. So here a wrong turn is an error, and no other CTA waits for it.
        self.arrivals[at] = jnp.where(is_next, count, OPEN)
        jax.debug.callback(check_turn, is_next)

    def wait(self, barrier, turn):
        slot, members = slot_of(barrier), pl.ds(barrier.first, barrier.members)

        def is_behind(spins):
            latest = jnp.max(self.arrivals[self.tile_of_pass, slot, members])
            return jnp.logical_and(latest > -jnp.int32(turn), spins < MAX_SPINS)

        lax.while_loop(is_behind, lambda spins: spins + 1, jnp.int32(0))

    def fence_async_proxy(self):
        """Nothing: interpreted copies need no fence."""


def slot_of(barrier):
    return jnp.minimum(barrier.semaphore, 1)  # the grid's semaphore is the first


def check_turn(is_next):
    assert is_next, "a CTA's turn at a barrier is not the one after its last"


def accumulate(cta):
    # The interpreted wgmma does not take a transposed operand.
    for chunk in range(cta.tiling.k_chunks):
        plgpu.barrier_wait(cta.scratch.copied.at[chunk])
    chunks = [cta.scratch.operand[i] for i in range(cta.tiling.k_chunks)]
    operand, weights = lax.concatenate(chunks, 1), cta.scratch.weights[...]
    contract_k = (((1,), (1,)), ((), ()))
    return lax.dot_general(operand, weights, contract_k, preferred_element_type=jnp.float32)


def look_up(table, rows, first, columns):
    return table[...][rows, first : first + columns]


def load_feature_major(ref, columns):
    return ref[...].T


def store_feature_major(ref, value):
    ref[...] = value.T


def over_columns(column, columns):
    return jnp.broadcast_to(column[:, None], (BATCH_TILE, columns))


def column_indices(columns):
    return lax.broadcasted_iota(jnp.int32, (BATCH_TILE, columns), 1)


def grid(tiling):
    params = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params")  # private to jax
    ctas = tiling.batch_groups * tiling.ctas  # those of one cluster alone run in parallel
    interpret = params.InterpretGPUParams()
    return {"cluster": (ctas,), "cluster_names": ("cta",), "interpret": interpret}


def ctas_of_tiles(tiling, scratch, partial_sums):
    """This CTA, once for each batch tile; `launch` adds the arrivals."""
    cta = lax.axis_index("cta")
    batch_group, of_group = cta // tiling.ctas, cta % tiling.ctas
    position = Position(batch_group, of_group // tiling.split_k, of_group % tiling.split_k)
    tiles = range(tiling.batch_tiles)
    return [InterpretedCta(tiling, position, i, scratch, partial_sums, None) for i in tiles]


def launch(body, tiling, weights, inputs, out_types, *extra_scratch):
    """The same with the arrivals as one more output."""
    tiles = tiling.batch_groups * tiling.batch_tiles
    arrivals = jax.ShapeDtypeStruct((tiles, 2, tiling.ctas), jnp.int32)
    num_arrays = len(inputs) + len(out_types)

    def with_arrivals(ctas, *refs):
        ctas = [replace(cta, arrivals=refs[num_arrays]) for cta in ctas]
        body(ctas, *refs[:num_arrays], *refs[num_arrays + 1 :])

    out_types = (*out_types, arrivals)
    return on_gpu.launch(with_arrivals, tiling, weights, inputs, out_types, *extra_scratch)[:-1]


def interpret_kernels(monkeypatch):
    monkeypatch.setattr(on_gpu, "_grid", grid)
    monkeypatch.setattr(on_gpu, "_ctas", ctas_of_tiles)
    monkeypatch.setattr(kernels, "launch", launch)
    monkeypatch.setattr(decode_kernel, "launch", launch)
    monkeypatch.setattr(tile_matmul, "accumulate", accumulate)
    monkeypatch.setattr(rows, "look_up", look_up)
    monkeypatch.setattr(rows, "load_feature_major", load_feature_major)
    monkeypatch.setattr(rows, "store_feature_major", store_feature_major)
    monkeypatch.setattr(rows, "_over_columns", over_columns)
    monkeypatch.setattr(rows, "_column_indices", column_indices)
