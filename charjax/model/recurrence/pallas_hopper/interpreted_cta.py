"""A CTA of a persistent kernel in Pallas' interpret mode, for tests on machines without a GPU."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from charjax.model.recurrence.pallas_hopper.cta import Barrier, Cta

_MAX_SPINS = 1_000_000  # of a wait: a deadlock fails a test, not hangs it
_OPEN = -(2**31)  # a count for which no CTA waits


class InterpretedCta(Cta):
    """A CTA without semaphores, layouts and multicast, which interpret mode does not have.

    `arrivals` is global memory, int32 [batch tiles of a pass, 2, ctas]: how often each CTA has
    arrived at a tile's barrier of the grid, and at its other one. Counts are negative, since
    interpret mode fills new memory with the largest integer.
    """

    def load(self, ref: Any, layout: Any = None) -> Array:
        """As on a GPU, without a layout."""
        del layout
        value: Array = ref[...]
        return value

    def store(self, ref: Any, value: Array) -> None:
        """As on a GPU."""
        ref[...] = value

    def arrive(self, barrier: Barrier, turn: Array | int) -> None:
        """Writes this CTA's count."""
        at, count = (self.tile_of_pass, _slot(barrier), self.index), -jnp.int32(turn)
        before = self.arrivals[at]
        is_next = jnp.where(count == -1, before > 0, before == count + 1)
        # A GPU counts by itself. So here a wrong turn is an error, and no other CTA waits for it.
        self.arrivals[at] = jnp.where(is_next, count, _OPEN)
        jax.debug.callback(_check_turn, is_next)

    def wait(self, barrier: Barrier, turn: Array | int) -> None:
        """Polls the counts of all members."""
        members = pl.ds(barrier.first, barrier.members)
        slot = _slot(barrier)

        def is_behind(spins: Array) -> Array:
            latest = jnp.max(self.arrivals[self.tile_of_pass, slot, members])
            return jnp.logical_and(latest > -jnp.int32(turn), spins < _MAX_SPINS)

        lax.while_loop(is_behind, lambda spins: spins + 1, jnp.int32(0))

    def fence_async_proxy(self) -> None:
        """Nothing: interpreted copies need no fence."""

    def _accumulate(self) -> Array:
        # The interpreted wgmma does not take a transposed operand.
        for chunk in range(self.tiling.k_chunks):
            plgpu.barrier_wait(self.scratch.copied.at[chunk])
        chunks = [self.scratch.operand[i] for i in range(self.tiling.k_chunks)]
        operand, weights = lax.concatenate(chunks, 1), self.scratch.weights[...]
        contract_k = (((1,), (1,)), ((), ()))
        return lax.dot_general(operand, weights, contract_k, preferred_element_type=jnp.float32)


def _slot(barrier: Barrier) -> Array:
    return jnp.minimum(barrier.semaphore, 1)  # the grid's semaphore is the first


def _check_turn(is_next: Any) -> None:
    assert is_next, "a CTA's turn at a barrier is not the one after its last"
