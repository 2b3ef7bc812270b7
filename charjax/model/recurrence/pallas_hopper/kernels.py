"""Persistent kernels for the recurrence: each runs all time steps of a layer in one launch.

Every CTA, one per SM, computes some hidden units and keeps their part of the recurrent kernel
in shared memory for the whole sequence. At each time step the CTAs exchange what the next
matmul multiplies: forward the state, backward the gradients of the hidden gates. Each step
writes it to a slot of its own in global memory, so that nothing is overwritten that another
CTA may still read, and one barrier over the grid per step is enough. (A tiling with split-K
adds one over each group.) The rest of the carry stays in registers.

Written in Pallas for Mosaic GPU: matmuls are wgmma, copies to shared memory are TMA. See
docs/kernels.md.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Float

from charjax.model.cells import Cell, Gates
from charjax.model.recurrence.pallas_hopper.cta import Cta, launch
from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE, Tiling

# 0 where the carry before a step is reset to zeros, else 1; after the last step always 1. The same
# for all units, so that a CTA loads it as it loads a state.
Keep: TypeAlias = Float[Array, "steps batch units"]
# The results of a kernel.
Arrays: TypeAlias = tuple[Array, ...]


def forward(
    cell: Cell,
    tiling: Tiling,
    igates: Float[Array, "time ctas gates batch units"],
    bias: Float[Array, "ctas batch units"],
    carry: Float[Array, "ctas states batch units"],
    weights: BFloat16[Array, "ctas n_per_cta k_per_cta"],
    keep: Keep | None = None,
    interpret: Any = None,
) -> Arrays:
    """One layer over a sequence, for `BATCH_TILE` batch rows.

    Args:
      cell: the cell.
      tiling: of a time step's matmul.
      igates: the input gates.
      bias: added to the last hidden gate.
      carry: before the first step.
      weights: `pack_weights` of the recurrent kernel.
      keep: where the carry is not reset; None: nowhere.
      interpret: parameters of Pallas' interpret mode for GPUs; None: run on a GPU.

    Returns:
      states: bfloat16 [time + 1, batch, hidden], before the first step and after each.
      residuals: float32 [time, ctas, 1 + residuals, batch, units]: the output, then the
        cell's residuals.
      last: float32 [ctas, states, batch, units], the carry after the last step.
    """
    time, ctas, _, _, units = igates.shape
    residuals = (time, ctas, 1 + num_residuals(cell), BATCH_TILE, units)
    out_types = (
        jax.ShapeDtypeStruct((time + 1, BATCH_TILE, tiling.hidden), jnp.bfloat16),
        jax.ShapeDtypeStruct(residuals, jnp.float32),
        jax.ShapeDtypeStruct(carry.shape, jnp.float32),
    )
    inputs = (igates, bias, carry) if keep is None else (igates, bias, carry, keep)
    body = partial(_forward_kernel, cell, time)
    return tuple(launch(body, tiling, weights, inputs, out_types, interpret))


def _forward_kernel(cell: Cell, time: int, cta: Cta, *refs: Any) -> None:
    igates, bias, carry, *keep, states, residuals, last = refs  # `keep` is empty without resets
    index = cta.index
    last_gate_bias = cta.load(bias.at[index])

    def publish(slot: Array | int, state: Array) -> None:
        cta.store(states.at[slot, :, cta.columns()], state.astype(jnp.bfloat16))
        cta.fence_async_proxy()
        cta.arrive(slot + 1)

    def step(t: Array, carry: Gates) -> Gates:
        # Issued before the wait, so that they overlap with it.
        igates_t = tuple(cta.load(igates.at[t, index, gate]) for gate in range(cell.gates))
        keep_next = _load_keep(cta, keep, t + 1)
        cta.wait(t + 1)
        cta.fence_async_proxy()
        hgates = cta.matmul(states.at[t], t + 1)
        hgates = (*hgates[:-1], hgates[-1] + last_gate_bias)
        carry, saved = cell.forward(igates_t, hgates, carry)
        output, carry = carry[0], _keep_where(keep_next, carry)
        publish(t + 1, carry[0])
        for i, value in enumerate((output, *saved)):  # after the arrival, off the critical path
            cta.store(residuals.at[t, index, i], value)
        return carry

    initial = tuple(cta.load(carry.at[index, s]) for s in range(cell.states))
    initial = _keep_where(_load_keep(cta, keep, 0), initial)
    publish(0, initial[0])
    for s, value in enumerate(lax.fori_loop(0, time, step, initial)):
        cta.store(last.at[index, s], value)


def backward(
    cell: Cell,
    tiling: Tiling,
    residuals: Float[Array, "time ctas residuals batch units"],
    d_outputs: Float[Array, "time ctas batch units"],
    d_last: Float[Array, "ctas states batch units"],
    weights: BFloat16[Array, "ctas n_per_cta k_per_cta"],
    keep: Keep | None = None,
    interpret: Any = None,
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
      interpret: as for `forward`.

    Returns:
      d_hgates: bfloat16 [time, batch, gates * hidden], gradients of the hidden gates.
      d_candidate: bfloat16 [time, batch, hidden], gradient of the candidate's input gate;
        [1, 1, 1] for a cell without `reset_after`.
      d_carry: float32 [ctas, states, batch, units], of the carry before the first step.
    """
    time, hidden = len(residuals), tiling.hidden
    d_candidate = (time, BATCH_TILE, hidden) if cell.reset_after else (1, 1, 1)
    out_types = (
        jax.ShapeDtypeStruct((time, BATCH_TILE, cell.gates * hidden), jnp.bfloat16),
        jax.ShapeDtypeStruct(d_candidate, jnp.bfloat16),
        jax.ShapeDtypeStruct(d_last.shape, jnp.float32),
    )
    saved = (residuals, d_outputs, d_last)
    inputs = saved if keep is None else (*saved, keep)
    body = partial(_backward_kernel, cell, time)
    return tuple(launch(body, tiling, weights, inputs, out_types, interpret))


def _backward_kernel(cell: Cell, time: int, cta: Cta, *refs: Any) -> None:
    # `keep` is empty without resets.
    residuals, d_outputs, d_last, *keep, d_hgates, d_candidate, d_carry = refs
    index, saved_arrays = cta.index, num_residuals(cell)

    def load_step(t: Array | int) -> Gates:
        saved = (cta.load(residuals.at[t, index, 1 + i]) for i in range(saved_arrays))
        return cta.load(d_outputs.at[t, index]), *saved

    def step(i: Array, loop: tuple[Gates, Gates]) -> tuple[Gates, Gates]:
        d_next, (d_output, *saved) = loop
        t = time - 1 - i
        grads = cell.backward(tuple(saved), (d_next[0] + d_output, *d_next[1:]))
        for gate, value in enumerate(grads.hgates):
            cta.store(d_hgates.at[t, :, cta.columns(gate)], value.astype(jnp.bfloat16))
        cta.fence_async_proxy()
        cta.arrive(i + 1)
        if grads.candidate is not None:
            cta.store(d_candidate.at[t, :, cta.columns()], grads.candidate.astype(jnp.bfloat16))
        prefetched = load_step(jnp.maximum(t - 1, 0))  # overlaps with the wait
        keep_now = _load_keep(cta, keep, t)
        cta.wait(i + 1)
        cta.fence_async_proxy()
        (through_hgates,) = cta.matmul(d_hgates.at[t], i + 1)
        d_before = (grads.carry[0] + through_hgates, *grads.carry[1:])
        return _keep_where(keep_now, d_before), prefetched

    d_final = tuple(cta.load(d_last.at[index, s]) for s in range(cell.states))
    d_initial, _ = lax.fori_loop(0, time, step, (d_final, load_step(time - 1)))
    for s, value in enumerate(d_initial):
        cta.store(d_carry.at[index, s], value)


def _load_keep(cta: Cta, keep: list[Any], t: Array | int) -> Array | None:
    return cta.load(keep[0].at[t]) if keep else None


def _keep_where(keep: Array | None, states: Gates) -> Gates:
    """The states with zeros where `keep` is 0; unchanged if it is None."""
    return states if keep is None else tuple(jnp.where(keep > 0, x, 0.0) for x in states)


def num_residuals(cell: Cell) -> int:
    """How many arrays the cell's forward step saves for its backward step."""
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    gates, carry = (scalar,) * cell.gates, (scalar,) * cell.states
    return len(jax.eval_shape(cell.forward, gates, gates, carry)[1])
