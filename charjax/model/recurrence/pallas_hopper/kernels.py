"""Persistent kernels for the recurrence: each runs all time steps of a layer in one launch.

Every CTA, one per SM, computes some hidden units and keeps their part of the recurrent kernel
in shared memory for the whole sequence. At each time step the CTAs exchange what the next
matmul multiplies: forward the state, backward the gradients of the hidden gates. Each step
writes it to a slot of its own in global memory, so that nothing is overwritten that another
CTA may still read, and one barrier over the grid per step is enough. (A tiling with split-K
adds one over each group.) The rest of the carry stays in registers.

A launch may have several batch groups: disjoint sets of CTAs, which run all this at the same time
for other batch rows. A batch group may have several batch tiles of `BATCH_TILE` rows. At each time
step a CTA works on one after another, so that the work on the others hides the barriers and the
exchange of each. If there are more rows, there are several passes: all time steps of the first
tiles, then all of the next ones, with the recurrent kernel still in shared memory.

Written in Pallas for Mosaic GPU: matmuls are wgmma, copies to shared memory are TMA. See
docs/kernels.md.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from charjax.model.cells import Cell, Gates
from charjax.model.recurrence.base import Inputs
from charjax.model.recurrence.pallas_hopper import rows
from charjax.model.recurrence.pallas_hopper.cta import Cta
from charjax.model.recurrence.pallas_hopper.launch import launch
from charjax.model.recurrence.pallas_hopper.schedule import TileWork, in_passes, loop_over_time
from charjax.model.recurrence.pallas_hopper.tile_matmul import copy_operand, matmul
from charjax.model.recurrence.pallas_hopper.tiling import Tiling

# 0 where the carry before a step is reset to zeros, else 1; after the last step always 1. The same
# for all units, so that a CTA loads it as it loads a state.
Keep: TypeAlias = Float[Array, "steps batch units"]
# The results of a kernel.
Arrays: TypeAlias = tuple[Array, ...]


def forward(
    cell: Cell,
    tiling: Tiling,
    inputs: Inputs,
    bias: Float[Array, "ctas tile units"],
    carry: Float[Array, "ctas states batch units"],
    weights: BFloat16[Array, "ctas n_per_cta k_per_cta"],
    keep: Keep | None = None,
) -> Arrays:
    """One layer over a sequence.

    Args:
      cell: the cell.
      tiling: of a time step's matmul; the batch is a multiple of its rows.
      inputs: the input gates; with tokens, the table is [vocab, gates * hidden].
      bias: added to the last hidden gate.
      carry: before the first step.
      weights: `pack_weights` of the recurrent kernel.
      keep: where the carry is not reset; None: nowhere.

    Returns:
      states: bfloat16 [time + 1, batch, hidden], before the first step and after each.
      outputs: float32 [hidden, time, batch].
      residuals: float32 [time, ctas, residuals, batch, units], of the cell.
      last: float32 [ctas, states, batch, units], the carry after the last step.
    """
    ctas, _, _, units = carry.shape
    time, batch = inputs.time_and_batch
    out_types = (
        jax.ShapeDtypeStruct((time + 1, batch, tiling.hidden), jnp.bfloat16),
        jax.ShapeDtypeStruct((tiling.hidden, time, batch), jnp.float32),
        jax.ShapeDtypeStruct((time, ctas, _num_residuals(cell), batch, units), jnp.float32),
        jax.ShapeDtypeStruct(carry.shape, jnp.float32),
    )
    kernel = partial(_forward_kernel, cell, time, len(jax.tree.leaves(inputs)))
    body = partial(in_passes, batch // tiling.rows, kernel)
    arrays = jax.tree.leaves((inputs, bias, carry, keep))  # without those that are None
    return launch(body, tiling, weights, tuple(arrays), out_types)


def _forward_kernel(cell: Cell, time: int, num_inputs: int, tiles: list[Cta], *refs: Any) -> None:
    inputs, refs = Inputs(*refs[:num_inputs]), refs[num_inputs:]
    bias, carry, *keep, states, outputs, residuals, last = refs  # `keep` is empty without resets
    index = tiles[0].index
    first_turn, first_matmul = tiles[0].first_turn(time + 1), tiles[0].first_turn(time)
    last_gate_bias = tiles[0].load(bias.at[index])

    def publish(cta: Cta, slot: Array | int, state: Array) -> None:
        cta.store(states.at[slot, cta.rows, cta.columns()], state.astype(jnp.bfloat16))
        cta.fence_async_proxy()
        cta.arrive(cta.grid, slot + first_turn)

    def begin(cta: Cta) -> Gates:
        initial = tuple(cta.load(carry.at[index, s, cta.rows]) for s in range(cell.states))
        initial = _keep_where(_load_keep(cta, keep, 0), initial)
        publish(cta, 0, initial[0])
        return initial

    def step(cta: Cta, t: Array, carry: Gates) -> TileWork[Gates]:
        # For what all published before they went on to other tiles.
        cta.wait(cta.grid, t + first_turn)
        cta.fence_async_proxy()
        copy_operand(cta, states.at[t])
        igates_t = _load_igates(cell, cta, inputs, t)  # overlaps with the copies
        keep_next = _load_keep(cta, keep, t + 1)
        hgates = yield from matmul(cta, t + first_matmul)
        hgates = (*hgates[:-1], hgates[-1] + last_gate_bias)
        carry, saved = cell.forward(igates_t, hgates, carry)
        output, carry = carry[0], _keep_where(keep_next, carry)
        publish(cta, t + 1, carry[0])
        # After the arrival, off the critical path.
        rows.store_feature_major(outputs.at[cta.columns(), t, cta.rows], output)
        for i, value in enumerate(saved):
            cta.store(residuals.at[t, index, i, cta.rows], value)
        return carry

    ends = loop_over_time(time, step, tiles, map(begin, tiles))
    for cta, final in zip(tiles, ends, strict=True):
        for s, value in enumerate(final):
            cta.store(last.at[index, s, cta.rows], value)


def backward(
    cell: Cell,
    tiling: Tiling,
    residuals: Float[Array, "time ctas residuals batch units"],
    d_outputs: Float[Array, "hidden time batch"],
    d_last: Float[Array, "ctas states batch units"],
    weights: BFloat16[Array, "ctas n_per_cta k_per_cta"],
    keep: Keep | None = None,
) -> Arrays:
    """The vector-Jacobian product of `forward`, from the last time step to the first.

    Args:
      cell: the cell.
      tiling: of a time step's matmul.
      residuals: of `forward`.
      d_outputs: gradients of the outputs.
      d_last: gradients of the carry after the last step.
      weights: `pack_weights` of the transposed recurrent kernel.
      keep: as for `forward`.

    Returns:
      d_hgates: bfloat16 [time, batch, gates * hidden], gradients of the hidden gates.
      d_candidate: bfloat16 [time, batch, hidden], gradient of the candidate's input gate;
        [1, 1, 1] for a cell without `reset_after`.
      d_carry: float32 [ctas, states, batch, units], of the carry before the first step.
    """
    hidden, time, batch = d_outputs.shape
    d_candidate = (time, batch, hidden) if cell.reset_after else (1, 1, 1)
    out_types = (
        jax.ShapeDtypeStruct((time, batch, cell.gates * hidden), jnp.bfloat16),
        jax.ShapeDtypeStruct(d_candidate, jnp.bfloat16),
        jax.ShapeDtypeStruct(d_last.shape, jnp.float32),
    )
    body = partial(in_passes, batch // tiling.rows, partial(_backward_kernel, cell, time))
    arrays = jax.tree.leaves((residuals, d_outputs, d_last, keep))
    return launch(body, tiling, weights, tuple(arrays), out_types)


def _backward_kernel(cell: Cell, time: int, tiles: list[Cta], *refs: Any) -> None:
    # `keep` is empty without resets.
    residuals, d_outputs, d_last, *keep, d_hgates, d_candidate, d_carry = refs
    index, saved_arrays = tiles[0].index, range(_num_residuals(cell))
    first_turn = tiles[0].first_turn(time)

    def load_step(cta: Cta, t: Array | int) -> Gates:
        saved = (cta.load(residuals.at[t, index, i, cta.rows]) for i in saved_arrays)
        d_output = d_outputs.at[cta.columns(), t, cta.rows]
        return rows.load_feature_major(d_output, cta.tiling.units), *saved

    def begin(cta: Cta) -> tuple[Gates, Gates]:
        d_final = tuple(cta.load(d_last.at[index, s, cta.rows]) for s in range(cell.states))
        return d_final, load_step(cta, time - 1)

    def step(cta: Cta, i: Array, loop: tuple[Gates, Gates]) -> TileWork[tuple[Gates, Gates]]:
        d_next, (d_output, *saved) = loop
        t = time - 1 - i
        grads = cell.backward(tuple(saved), (d_next[0] + d_output, *d_next[1:]))
        for gate, value in enumerate(grads.hgates):
            cta.store(d_hgates.at[t, cta.rows, cta.columns(gate)], value.astype(jnp.bfloat16))
        cta.fence_async_proxy()
        cta.arrive(cta.grid, i + first_turn)
        yield
        cta.wait(cta.grid, i + first_turn)
        cta.fence_async_proxy()
        copy_operand(cta, d_hgates.at[t])
        # What overlaps with the copies.
        if grads.candidate is not None:
            slot = d_candidate.at[t, cta.rows, cta.columns()]
            cta.store(slot, grads.candidate.astype(jnp.bfloat16))
        prefetched = load_step(cta, jnp.maximum(t - 1, 0))
        keep_now = _load_keep(cta, keep, t)
        (through_hgates,) = yield from matmul(cta, i + first_turn)
        d_before = (grads.carry[0] + through_hgates, *grads.carry[1:])
        return _keep_where(keep_now, d_before), prefetched

    ends = loop_over_time(time, step, tiles, map(begin, tiles))
    for cta, (d_initial, _) in zip(tiles, ends, strict=True):
        for s, value in enumerate(d_initial):
            cta.store(d_carry.at[index, s, cta.rows], value)


def _load_igates(cell: Cell, cta: Cta, inputs: Inputs, t: Array) -> Gates:
    igates: Any = inputs.igates
    units, columns = cta.tiling.units, [cta.columns(gate) for gate in range(cell.gates)]
    if inputs.tokens is None:
        blocks = (igates.at[features, t, cta.rows] for features in columns)
        return tuple(rows.load_feature_major(block, units) for block in blocks)
    tokens: Any = inputs.tokens
    tokens = cta.load(tokens.at[t, cta.rows], rows.COLUMN)
    return tuple(rows.look_up(igates.at[:, features], tokens, 0, units) for features in columns)


def _load_keep(cta: Cta, keep: list[Any], t: Array | int) -> Array | None:
    return cta.load(keep[0].at[t, cta.rows]) if keep else None


def _keep_where(keep: Array | None, states: Gates) -> Gates:
    """The states with zeros where `keep` is 0; unchanged if it is None."""
    return states if keep is None else tuple(jnp.where(keep > 0, x, 0.0) for x in states)


def _num_residuals(cell: Cell) -> int:
    """How many arrays the cell's forward step saves for its backward step."""
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    gates, carry = (scalar,) * cell.gates, (scalar,) * cell.states
    return len(jax.eval_shape(cell.forward, gates, gates, carry)[1])
