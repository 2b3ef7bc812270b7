"""The loops over time as one GPU kernel each, which keeps the recurrent weights on chip.

Every CTA, one a multiprocessor, owns some hidden units. It brings its part of the recurrent
kernel into shared memory once, and then steps through the whole sequence. What a step
needs of all others, the state forwards and the gate gradients backwards, goes through
global memory: each step has a slot of its own there, so that nothing is overwritten while
it may still be read, and one barrier over all CTAs a step is enough. (Sums cut in parts,
see `persistent_plan.Spread`, take one more, over the few CTAs that share them.)

Written in Pallas for Mosaic GPU: products by `wgmma`, copies by TMA. Checked in interpret
mode and compiled for Hopper; not yet run on a GPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import utils as mosaic
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float

from charjax.model.cells import CELLS, Gates
from charjax.model.persistent_plan import LANES, TILE, Spread

# Rows of 64 bfloat16 numbers, eight to a tile: how `wgmma` reads shared memory.
_TRANSFORMS = (plgpu.TilingTransform((8, TILE)), plgpu.SwizzleTransform(2 * TILE))


# What `plgpu.load` takes of a reference: an index before jax 0.12, and then all of it.
_WHOLE = ((),) if "idx" in inspect.signature(plgpu.load).parameters else ()


class Forward(NamedTuple):
    """What the forward kernel leaves behind.

    Attributes:
      states: bfloat16 [time + 1, batch, hidden], before the first step and after each.
      kept: float32 [time, ctas, kept, batch, units]: the output, then what the cell saves.
      last: float32 [ctas, states, batch, units], the carry after the last step.
    """

    states: Array
    kept: Array
    last: Array


class Backward(NamedTuple):
    """What the backward kernel leaves behind.

    Attributes:
      d_u: bfloat16 [time, batch, gates], gradients of the state's share of the gates.
      own: bfloat16 [time, batch, hidden], of the last gate's own; [1, 1, 1] where the cell
        has none.
      d_carry: float32 [ctas, states, batch, units], of the carry before the first step.
    """

    d_u: Array
    own: Array
    d_carry: Array


@dataclass(frozen=True)
class _Block:
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

        def behind(_: Array) -> Array:
            latest = jnp.max(self.flags[row, pl.ds(first, members)])
            return jnp.greater(latest, -jnp.int32(turn))

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
        split, own = self.spread.split, self.spread.outs * self.spread.units
        for to in range(split):
            self.write(self.partial.at[self.at, to], sums[:, to * own : (to + 1) * own])
        self.arrive(turn, self.group)
        self.wait(turn, self.group)
        first = self.group * split
        parts = [self.read(self.partial.at[first + by, self.member]) for by in range(split)]
        return sum(parts[1:], start=parts[0])


def _fence_proxies(_: Any) -> None:
    nvvm = mosaic.nvvm  # type: ignore[attr-defined]
    nvvm.fence_proxy(nvvm.ProxyKind.async_)


def forward(
    cell: str,
    spread: Spread,
    x: Float[Array, "time ctas gates batch units"],
    bias: Float[Array, "ctas batch units"],
    carry: Float[Array, "ctas states batch units"],
    weights: BFloat16[Array, "ctas columns part"],
    interpret: Any = None,
) -> Forward:
    """All steps of a layer, for `LANES` lanes.

    Args:
      cell: a name in `CELLS`.
      spread: of a step's product over the CTAs.
      x: the input's share of the gates.
      bias: added to the state's share of the last gate.
      carry: before the first step.
      weights: `persistent_plan.blocks` of the recurrent kernel.
      interpret: parameters of Pallas' interpret mode for GPUs, for tests; None: run on one.
    """
    (time, ctas, gates, _, units), states = x.shape, carry.shape[1]

    def body(
        block: _Block, x: Any, bias: Any, carry: Any, shown: Any, kept: Any, last: Any
    ) -> None:
        at, own = block.at, pl.ds(block.at * units, units)
        bias_of_last = block.read(bias.at[at])

        def show(slot: Array | int, state: Array) -> None:
            block.write(shown.at[slot, :, own], state.astype(jnp.bfloat16))
            block.fence()
            block.arrive(slot + 1)

        def step(t: Array, now: Gates) -> Gates:
            # Asked for before the wait, so that it comes during it.
            x_now = tuple(block.read(x.at[t, at, gate]) for gate in range(gates))
            block.wait(t + 1)
            block.fence()
            u = block.multiply(shown.at[t], t + 1)
            after, saved = CELLS[cell].forward(x_now, (*u[:-1], u[-1] + bias_of_last), now)
            show(t + 1, after[0])
            for i, value in enumerate((after[0], *saved)):
                block.write(kept.at[t, at, i], value)
            return after

        first = tuple(block.read(carry.at[at, s]) for s in range(states))
        show(0, first[0])
        for s, value in enumerate(lax.fori_loop(0, time, step, first)):
            block.write(last.at[at, s], value)

    out = (
        jax.ShapeDtypeStruct((time + 1, LANES, spread.hidden), jnp.bfloat16),
        jax.ShapeDtypeStruct((time, ctas, 1 + saves(cell), LANES, units), jnp.float32),
        jax.ShapeDtypeStruct(carry.shape, jnp.float32),
    )
    return Forward(*_run(body, spread, weights, (x, bias, carry), out, interpret))


def backward(
    cell: str,
    spread: Spread,
    kept: Float[Array, "time ctas kept batch units"],
    d_outputs: Float[Array, "time ctas batch units"],
    d_last: Float[Array, "ctas states batch units"],
    weights: BFloat16[Array, "ctas columns part"],
    interpret: Any = None,
) -> Backward:
    """All steps of a layer from the last to the first: the transpose of `forward`.

    Args:
      cell: a name in `CELLS`.
      spread: of a step's product over the CTAs.
      kept: of `forward`.
      d_outputs: gradients of the outputs.
      d_last: of the carry after the last step.
      weights: `persistent_plan.blocks` of the transposed recurrent kernel.
      interpret: as for `forward`.
    """
    (time, _, _, units), states = d_outputs.shape, d_last.shape[1]
    this, hidden, saved_arrays = CELLS[cell], spread.hidden, saves(cell)

    def body(
        block: _Block, kept: Any, d_outputs: Any, d_last: Any, d_u: Any, own: Any, d_carry: Any
    ) -> None:
        at = block.at

        def step(turn: Array, d_now: Gates) -> Gates:
            t = time - 1 - turn
            saved = tuple(block.read(kept.at[t, at, 1 + i]) for i in range(saved_arrays))
            d_after = (d_now[0] + block.read(d_outputs.at[t, at]), *d_now[1:])
            grads = this.backward(saved, d_after)
            for gate, value in enumerate(grads.u):
                columns = pl.ds(gate * hidden + at * units, units)
                block.write(d_u.at[t, :, columns], value.astype(jnp.bfloat16))
            block.fence()
            block.arrive(turn + 1)
            if grads.own is not None:
                columns = pl.ds(at * units, units)
                block.write(own.at[t, :, columns], grads.own.astype(jnp.bfloat16))
            block.wait(turn + 1)
            block.fence()
            (through_u,) = block.multiply(d_u.at[t], turn + 1)
            return (grads.carry[0] + through_u, *grads.carry[1:])

        first = tuple(block.read(d_last.at[at, s]) for s in range(states))
        for s, value in enumerate(lax.fori_loop(0, time, step, first)):
            block.write(d_carry.at[at, s], value)

    own = (time, LANES, hidden) if this.two_shares else (1, 1, 1)
    out = (
        jax.ShapeDtypeStruct((time, LANES, this.gates * hidden), jnp.bfloat16),
        jax.ShapeDtypeStruct(own, jnp.bfloat16),
        jax.ShapeDtypeStruct(d_last.shape, jnp.float32),
    )
    return Backward(*_run(body, spread, weights, (kept, d_outputs, d_last), out, interpret))


def saves(cell: str) -> int:
    """How many arrays a cell keeps of a step for its backward pass."""
    this, one = CELLS[cell], jax.ShapeDtypeStruct((), jnp.float32)
    gates, carry = (one,) * this.gates, (one,) * this.states
    return len(jax.eval_shape(this.forward, gates, gates, carry)[1])


def _run(
    body: Callable[..., None],
    spread: Spread,
    weights: Array,
    inputs: tuple[Array, ...],
    out: tuple[jax.ShapeDtypeStruct, ...],
    interpret: Any,
) -> list[Array]:
    """Runs `body(block, *inputs, *out)` on all CTAs at once."""
    on_chip = (
        plgpu.SMEM((spread.columns, spread.part), jnp.bfloat16, transforms=_TRANSFORMS),
        plgpu.SMEM((spread.pieces, LANES, spread.piece), jnp.bfloat16, transforms=_TRANSFORMS),
        plgpu.Barrier(num_barriers=spread.pieces),
        plgpu.Barrier(num_barriers=1),
    )
    own = spread.outs * spread.units
    partial = (spread.ctas, spread.split, LANES, own) if spread.split > 1 else (1, 1, 1, 1)
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
        block = _Block(spread, *where, weights, operand, arrived, partial, counts, flags)
        block.bring_weights(blocks, weights_arrived)
        body(block, *arrays)

    run = plgpu.kernel(
        start,
        out_type=(*out, *between),
        scratch_types=on_chip,
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        **_grid(spread, interpret),
    )
    return list(run(weights, *inputs))[: len(out)]


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
