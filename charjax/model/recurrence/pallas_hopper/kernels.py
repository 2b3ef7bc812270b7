"""The loops over time as one GPU kernel each, which keeps the recurrent weights on chip.

Every CTA, one a multiprocessor, owns some hidden units, and steps through the whole sequence
with their part of the recurrent kernel in shared memory. What a step needs of all others,
the state forwards and the gate gradients backwards, has a slot of its own for each step in
global memory, so that nothing is overwritten while it may still be read, and one barrier
over all CTAs a step is enough. (Sums cut in parts, see `persistent_plan.Spread`, take one more,
over the few CTAs that share them.)

Written in Pallas for Mosaic GPU: products by `wgmma`, copies by TMA. Checked in interpret
mode and lowered for CUDA; not yet run on a GPU.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Float

from charjax.model.cells import CELLS, Gates
from charjax.model.recurrence.pallas_hopper.cta import Block, run
from charjax.model.recurrence.pallas_hopper.tiling import LANES, Spread


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
    time, ctas, _, _, units = x.shape
    out = (
        jax.ShapeDtypeStruct((time + 1, LANES, spread.hidden), jnp.bfloat16),
        jax.ShapeDtypeStruct((time, ctas, 1 + saves(cell), LANES, units), jnp.float32),
        jax.ShapeDtypeStruct(carry.shape, jnp.float32),
    )
    body = partial(_forward_on, cell, time)
    return Forward(*run(body, spread, weights, (x, bias, carry), out, interpret))


def _forward_on(
    cell: str,
    time: int,
    block: Block,
    x: Any,
    bias: Any,
    carry: Any,
    shown: Any,
    kept: Any,
    last: Any,
) -> None:
    this, at = CELLS[cell], block.at
    bias_of_last = block.read(bias.at[at])

    def show(slot: Array | int, state: Array) -> None:
        block.write(shown.at[slot, :, block.own()], state.astype(jnp.bfloat16))
        block.fence()
        block.arrive(slot + 1)

    def step(t: Array, now: Gates) -> Gates:
        # Asked for before the wait, so that it comes during it.
        x_now = tuple(block.read(x.at[t, at, gate]) for gate in range(this.gates))
        block.wait(t + 1)
        block.fence()
        u = block.multiply(shown.at[t], t + 1)
        after, saved = this.forward(x_now, (*u[:-1], u[-1] + bias_of_last), now)
        show(t + 1, after[0])
        for i, value in enumerate((after[0], *saved)):
            block.write(kept.at[t, at, i], value)
        return after

    first = tuple(block.read(carry.at[at, s]) for s in range(this.states))
    show(0, first[0])
    for s, value in enumerate(lax.fori_loop(0, time, step, first)):
        block.write(last.at[at, s], value)


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
    time, hidden, this = len(kept), spread.hidden, CELLS[cell]
    own = (time, LANES, hidden) if this.reset_after else (1, 1, 1)
    out = (
        jax.ShapeDtypeStruct((time, LANES, this.gates * hidden), jnp.bfloat16),
        jax.ShapeDtypeStruct(own, jnp.bfloat16),
        jax.ShapeDtypeStruct(d_last.shape, jnp.float32),
    )
    body = partial(_backward_on, cell, time)
    return Backward(*run(body, spread, weights, (kept, d_outputs, d_last), out, interpret))


def _backward_on(
    cell: str,
    time: int,
    block: Block,
    kept: Any,
    d_outputs: Any,
    d_last: Any,
    d_u: Any,
    own: Any,
    d_carry: Any,
) -> None:
    this, at, saved_arrays = CELLS[cell], block.at, saves(cell)

    def read(t: Array | int) -> Gates:
        saved = (block.read(kept.at[t, at, 1 + i]) for i in range(saved_arrays))
        return block.read(d_outputs.at[t, at]), *saved

    def step(turn: Array, loop: tuple[Gates, Gates]) -> tuple[Gates, Gates]:
        d_now, (d_output, *saved) = loop
        t = time - 1 - turn
        grads = this.backward(tuple(saved), (d_now[0] + d_output, *d_now[1:]))
        for gate, value in enumerate(grads.hgates):
            block.write(d_u.at[t, :, block.own(gate)], value.astype(jnp.bfloat16))
        block.fence()
        block.arrive(turn + 1)
        if grads.candidate is not None:
            block.write(own.at[t, :, block.own()], grads.candidate.astype(jnp.bfloat16))
        ahead = read(jnp.maximum(t - 1, 0))  # comes during the wait
        block.wait(turn + 1)
        block.fence()
        (through_u,) = block.multiply(d_u.at[t], turn + 1)
        return (grads.carry[0] + through_u, *grads.carry[1:]), ahead

    first = tuple(block.read(d_last.at[at, s]) for s in range(this.states))
    d_first, _ = lax.fori_loop(0, time, step, (first, read(time - 1)))
    for s, value in enumerate(d_first):
        block.write(d_carry.at[at, s], value)


def saves(cell: str) -> int:
    """How many arrays a cell keeps of a step for its backward pass."""
    this, one = CELLS[cell], jax.ShapeDtypeStruct((), jnp.float32)
    gates, carry = (one,) * this.gates, (one,) * this.states
    return len(jax.eval_shape(this.forward, gates, gates, carry)[1])
