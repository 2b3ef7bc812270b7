"""Sampling as one persistent kernel on one NVIDIA Hopper GPU: a token read and chosen per step.

The Gumbel noise is given, and with it all that is added to the logits of a step. So a token is
the argmax of a row, and a forced token one with a very large addend. A row has the same bits in
a batch of any size: the matmul always has `BATCH_TILE` rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from charjax.config import ModelConfig
from charjax.model.cells import CELLS
from charjax.model.decode import DecodeState
from charjax.model.decode_weights import DecodeWeights
from charjax.model.recurrence.pallas_hopper.decode_kernel import Blocks, KernelInputs, Sizes, run
from charjax.model.recurrence.pallas_hopper.ops import launch_config
from charjax.model.recurrence.pallas_hopper.plan import LaunchConfig
from charjax.model.recurrence.pallas_hopper.tiling import (
    BATCH_TILE,
    Tiling,
    choose_decode_tiling,
    from_ctas,
    pack_weights,
    padded_vocab,
    to_ctas,
)

# Added to the logit of a forced token: beyond all logits, and far from the largest float32.
_FORCED = 1e30


def fits(config: ModelConfig, vocab_size: int, batch: int) -> bool:
    """Whether the kernel runs a model that the persistent kernels of the recurrence run."""
    gates, num_sms = CELLS[config.cell].gates, launch_config().num_sms
    tiling = choose_decode_tiling(config.hidden, gates, vocab_size, num_sms)
    return config.layers == 1 and batch <= BATCH_TILE and tiling is not None


def decode(
    cell: str,
    weights: DecodeWeights,
    state: DecodeState,
    igates: Float[Array, "batch gates"],
    forced: Int[Array, "time batch"],
    noise: Float[Array, "time batch vocab"],
    launch: LaunchConfig | None = None,
) -> tuple[Int[Array, "time batch"], DecodeState]:
    """Reads a token and chooses the next one, at each step.

    Args:
      cell: a name in `CELLS`.
      weights: of a model with one layer, bfloat16 and batch-major.
      state: before the first step.
      igates: of the token that the first step reads.
      forced: the token that each step chooses; -1: the one with the largest sum of logit and noise.
      noise: added to the logits.
      launch: how the kernel is launched; None: on this process's GPU.

    Returns:
      The tokens, and the state after the last step, which has not read the last token.

    Raises:
      ValueError: the model does not fit the GPU.
    """
    batch, hidden = state.carry[0][0].shape
    gates, vocab_size = CELLS[cell].gates, weights.vocab_size
    num_sms = (launch or launch_config()).num_sms
    tiling = choose_decode_tiling(hidden, gates, vocab_size, num_sms)
    if tiling is None:
        raise ValueError(f"no tiling of a {cell} with {hidden} units and {vocab_size} tokens")
    bias, output_bias = jnp.split(weights.biases[0], [gates * hidden])
    padding = tiling.ctas * tiling.units - vocab_size
    kernel = jnp.pad(weights.kernels[0], ((0, 0), (0, padding)))  # type: ignore[arg-type]
    inputs = KernelInputs(
        _to_ctas(jnp.split(igates, gates, axis=1), tiling),
        _to_ctas(jnp.split(state.hgates[0], gates, axis=1), tiling),
        _to_ctas(state.carry[0], tiling),
        _to_ctas([jnp.broadcast_to(bias[-hidden:], (BATCH_TILE, hidden))], tiling)[:, 0],
        _addends(tiling, output_bias, forced, noise),
        _table_to_ctas(weights.table, tiling),
    )
    packed = pack_weights(kernel.reshape(hidden, gates + 1, hidden), tiling)
    sizes = Sizes(-(-batch // 8) * 8, vocab_size)
    tokens, *blocks = run(CELLS[cell], tiling, sizes, inputs, packed)
    hgates, carry = (tuple(from_ctas(of_ctas)[:, :batch]) for of_ctas in blocks)
    return tokens[:, :batch], DecodeState((carry,), (jnp.concatenate(hgates, axis=1),))


def _addends(
    tiling: Tiling,
    output_bias: Float[Array, " vocab"],
    forced: Int[Array, "time batch"],
    noise: Float[Array, "time batch vocab"],
) -> Float[Array, "time rows padded"]:
    """What is added to the logits of each step; no padded token is ever chosen.

    The bias is not added where a token is forced: it may forbid that token.
    """
    is_forced = jnp.arange(noise.shape[2])[None, None] == forced[..., None]
    given = jnp.where(is_forced, _FORCED, 0.0)
    addends = jnp.where(forced[..., None] >= 0, given, noise + output_bias[None, None])
    rows, columns = BATCH_TILE - noise.shape[1], -noise.shape[2] % tiling.units
    addends = jnp.pad(addends, ((0, 0), (0, 0), (0, columns)), constant_values=-jnp.inf)
    return jnp.pad(addends, ((0, 0), (0, rows), (0, 0)))


def _to_ctas(arrays: Sequence[Float[Array, "batch hidden"]], tiling: Tiling) -> Blocks:
    rows = BATCH_TILE - len(arrays[0])
    return to_ctas(jnp.pad(jnp.stack(arrays), ((0, 0), (0, rows), (0, 0))), tiling)


def _table_to_ctas(
    table: Float[Array, "vocab gates"], tiling: Tiling
) -> Float[Array, "ctas padded columns"]:
    """Each CTA's columns of the table."""
    vocab_size = len(table)
    padded = jnp.pad(table, ((0, padded_vocab(vocab_size) - vocab_size), (0, 0)))
    split = padded.reshape(len(padded), -1, tiling.ctas, tiling.units)
    return split.transpose(2, 0, 1, 3).reshape(tiling.ctas, len(padded), -1)
