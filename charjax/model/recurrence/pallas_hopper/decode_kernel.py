"""The kernel of `decode.py`: all CTAs read a token and choose the next one, step by step.

A CTA keeps, in shared memory, its columns of the recurrent kernel and of the kernel of the
logits, and its columns of the table of input gates. A step has two barriers: over all CTAs when
the states are there, and over the few CTAs that have logits when those have their best token.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float

from charjax.model.cells import Cell, Gates
from charjax.model.recurrence.pallas_hopper import rows, tile_matmul
from charjax.model.recurrence.pallas_hopper.cta import Cta
from charjax.model.recurrence.pallas_hopper.launch import launch
from charjax.model.recurrence.pallas_hopper.tile_matmul import by_output, copy_operand
from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE, Tiling

# Matrices [rows, hidden], divided among the CTAs; there are `BATCH_TILE` rows.
Blocks = Float[Array, "ctas matrices rows units"]


class KernelInputs(NamedTuple):
    """What the kernel reads beside the weights, float32.

    Attributes:
      igates: input gates of the token that the first step reads.
      hgates: hidden gates of the first step.
      carry: before the first step.
      bias: added to the last hidden gate.
      addends: what is added to the logits of each step.
      tables: input gates of all tokens.
    """

    igates: Blocks
    hgates: Blocks
    carry: Blocks
    bias: Float[Array, "ctas rows units"]
    addends: Float[Array, "time rows padded"]
    tables: Float[Array, "ctas padded columns"]


class _KernelOutputs(NamedTuple):
    """What the kernel writes.

    Attributes:
      tokens: int32 [time, rows], chosen.
      hgates: `Blocks`, hidden gates of the step after the last.
      carry: `Blocks`, after the last step.
      states: bfloat16 [2, rows, hidden], of even and odd steps.
      best: [CTAs with logits, rows], the largest sums of logit and addend of a step.
      best_tokens: int32 [CTAs with logits, rows], the tokens that have them.
    """

    tokens: Any
    hgates: Any
    carry: Any
    states: Any
    best: Any
    best_tokens: Any


class Sizes(NamedTuple):
    """Sizes of a batch and a vocabulary.

    Attributes:
      rows: number of sequences, rounded up to a multiple of 8.
      vocab: number of tokens.
    """

    rows: int
    vocab: int


def run(
    cell: Cell,
    tiling: Tiling,
    sizes: Sizes,
    inputs: KernelInputs,
    weights: BFloat16[Array, "ctas n_per_cta k_per_cta"],
) -> tuple[Array, Array, Array]:
    """All steps in one launch.

    Args:
      cell: the cell.
      tiling: from `choose_decode_tiling`.
      sizes: of the batch and the vocabulary.
      inputs: of the kernel.
      weights: `pack_weights` of the recurrent kernel and that of the logits.

    Returns:
      The tokens [time, rows], and the last hidden gates and the last carry as `Blocks`.
    """
    with_logits = -(-sizes.vocab // tiling.units)
    time, float32 = len(inputs.addends), jnp.float32
    outputs = _KernelOutputs(
        tokens=jax.ShapeDtypeStruct((time, BATCH_TILE), jnp.int32),
        hgates=jax.ShapeDtypeStruct(inputs.hgates.shape, float32),
        carry=jax.ShapeDtypeStruct(inputs.carry.shape, float32),
        states=jax.ShapeDtypeStruct((2, BATCH_TILE, tiling.hidden), jnp.bfloat16),
        best=jax.ShapeDtypeStruct((with_logits, BATCH_TILE), float32),
        best_tokens=jax.ShapeDtypeStruct((with_logits, BATCH_TILE), jnp.int32),
    )
    body = partial(_kernel, cell, sizes)
    table = plgpu.SMEM(inputs.tables.shape[1:], float32)
    tokens, hgates, carry, *_ = launch(body, tiling, weights, inputs, outputs, (table,))
    return tokens, hgates, carry


def _kernel(cell: Cell, sizes: Sizes, tiles: list[Cta], *refs: Any) -> None:
    """All steps.

    Two slots of states are enough, and one of best tokens. A CTA overwrites the states of step
    t - 2 at step t, when it has passed the barrier of all CTAs of step t - 1: each arrived there
    after its matmul of step t - 2. A CTA overwrites the best tokens of step t - 1 when it has
    passed the barrier of all CTAs of step t: each arrived there with a state that depends on the
    token which it chose from those of step t - 1.
    """
    (cta,), (*arrays, table) = tiles, refs
    inputs = KernelInputs(*arrays[: len(KernelInputs._fields)])
    outputs = _KernelOutputs(*arrays[len(KernelInputs._fields) :])
    index, units, with_logits = cta.index, cta.tiling.units, outputs.best.shape[0]
    cta.load_shared(inputs.tables.at[index], table)
    last_gate_bias = cta.load(inputs.bias.at[index])
    tokens = pl.ds(jnp.minimum(index, with_logits - 1) * units, units)

    def step(t: Array, loop: tuple[Gates, Gates, Gates]) -> tuple[Gates, Gates, Gates]:
        igates, hgates, carry = loop
        carry, _ = cell.forward(igates, hgates, carry)
        slot = outputs.states.at[t & 1]
        cta.store(slot.at[cta.rows, cta.columns()], carry[0].astype(jnp.bfloat16))
        cta.fence_async_proxy()
        cta.arrive(cta.grid, t + 1)
        cta.wait(cta.grid, t + 1)
        cta.fence_async_proxy()
        copy_operand(cta, slot, sizes.rows)
        addend = cta.load(inputs.addends.at[t, :, tokens])  # overlaps with the copies
        *before_last, last_gate, logits = by_output(cta, tile_matmul.accumulate(cta))
        _publish_best(cta, outputs, t, logits + addend)
        hgates = (*before_last, last_gate + last_gate_bias)
        token = _choose(cta, outputs, t, sizes.vocab)
        starts = range(0, cell.gates * units, units)
        igates = tuple(rows.look_up(table, token, start, units) for start in starts)
        return igates, hgates, carry

    def load(blocks: Any) -> Gates:
        return tuple(cta.load(blocks.at[index, i]) for i in range(blocks.shape[1]))

    initial = load(inputs.igates), load(inputs.hgates), load(inputs.carry)
    _, *last = lax.fori_loop(0, inputs.addends.shape[0], step, initial)
    for blocks, values in zip((outputs.hgates, outputs.carry), last, strict=True):
        for i, value in enumerate(values):
            cta.store(blocks.at[index, i], value)


def _publish_best(cta: Cta, outputs: _KernelOutputs, t: Array, scores: Array) -> None:
    """Stores the largest score of each row and its token, in the CTAs that have logits."""
    largest, first = rows.row_max(scores)

    @pl.when(cta.index < outputs.best.shape[0])
    def _() -> None:
        cta.store(outputs.best.at[cta.index], largest)
        cta.store(outputs.best_tokens.at[cta.index], first + cta.index * cta.tiling.units)
        cta.arrive(cta.first_ctas(outputs.best.shape[0]), t + 1)


def _choose(cta: Cta, outputs: _KernelOutputs, t: Array, vocab_size: int) -> Array:
    """The token of each row that has the largest score of all CTAs; int32 [rows]."""
    with_logits = outputs.best.shape[0]
    cta.wait(cta.first_ctas(with_logits), t + 1)
    published = range(with_logits)
    best = [
        (
            cta.load(outputs.best.at[i], rows.COLUMN),
            cta.load(outputs.best_tokens.at[i], rows.COLUMN),
        )
        for i in published
    ]
    # The rows that are not copied have any numbers, of which the table has no row.
    token = jnp.clip(rows.paired_with_max(best), 0, vocab_size - 1)

    @pl.when(cta.index == 0)
    def _() -> None:
        cta.store(outputs.tokens.at[t], token)

    return token
