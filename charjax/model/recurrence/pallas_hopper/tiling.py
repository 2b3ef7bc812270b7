"""Split-K tiling of the recurrent matmul over the streaming multiprocessors (SMs) of a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

BATCH_TILE = 64  # batch rows of a matmul: M of a Hopper warpgroup matmul (wgmma)
SWIZZLE = 64  # bfloat16 elements of a 128-byte swizzled row of shared memory
_WGMMA_N = (8, 256)  # N of a wgmma: its granularity, and the largest
_SPLITS = (1, 2, 4, 8)
_MAX_K_CHUNKS = 4
_SEMAPHORES_PER_LINE = 32  # of 4 bytes, in a cache line of 128
_MAX_BOX = 256  # of a TMA copy, along each axis

# A CTA of Hopper has 227 KiB; the rest is for barriers and alignment.
_SMEM_BYTES = 226 * 1024
# What an SM could load from the L2 cache during a barrier; an estimate.
_BARRIER_BYTES = 50_000
# A time step takes this time, plus its bytes over this bandwidth of L2; see docs/kernels.md.
_EXCHANGE_US, _BYTES_PER_US = 1.85, 5.5e6


@dataclass(frozen=True)
class Tiling:
    """Which CTA computes what of a time step's matmul, [BATCH_TILE, K] @ [K, N].

    Each CTA runs on an SM of its own. N is `outputs_per_unit * hidden`, and a CTA computes
    the final sums of `units` hidden units. With split-K, `split_k` CTAs form a group: each
    multiplies another part of K, for the units of the whole group, and then reduces the
    partial sums of its own units. Batch groups are independent of one another: each has CTAs for
    all of this, which work on other batch rows.

    Attributes:
      hidden: units of the layer.
      k: contracted dimension of the whole matmul.
      outputs_per_unit: columns of N per hidden unit.
      units: hidden units per CTA.
      split_k: CTAs per split-K group.
      batch_tiles: matmuls of a batch group in a time step, each of `BATCH_TILE` other batch rows.
      batch_groups: batch groups of a launch.
    """

    hidden: int
    k: int
    outputs_per_unit: int
    units: int
    split_k: int = 1
    batch_tiles: int = 1
    batch_groups: int = 1

    @property
    def rows(self) -> int:
        """Batch rows of a pass."""
        return self.batch_groups * self.batch_tiles * BATCH_TILE

    @property
    def ctas(self) -> int:
        """CTAs of a batch group."""
        return self.hidden // self.units

    @property
    def groups(self) -> int:
        """Split-K groups of a batch group."""
        return self.ctas // self.split_k

    @property
    def semaphores(self) -> int:
        """Semaphores of a batch group's tile: its grid's and its split-K groups'.

        Rounded up to cache lines, so that batch groups do not wait for one another's atomics.
        """
        return -(-(1 + self.groups) // _SEMAPHORES_PER_LINE) * _SEMAPHORES_PER_LINE

    @property
    def k_per_cta(self) -> int:
        """Rows of the right operand in a CTA."""
        return self.k // self.split_k

    @property
    def n_per_cta(self) -> int:
        """Columns of the right operand in a CTA."""
        return self.split_k * self.outputs_per_unit * self.units

    @property
    def k_chunks(self) -> int:
        """TMA copies of the left operand: wgmma starts on the first while others are in flight."""
        return next(n for n in range(_MAX_K_CHUNKS, 0, -1) if self.k_per_cta % (n * SWIZZLE) == 0)

    @property
    def k_per_chunk(self) -> int:
        """Columns of the left operand in one copy."""
        return self.k_per_cta // self.k_chunks

    @property
    def smem_bytes(self) -> int:
        """Shared memory of a CTA: its parts of both operands."""
        return 2 * self.k_per_cta * (self.n_per_cta + BATCH_TILE)

    @property
    def bytes_per_step(self) -> int:
        """Estimated traffic of a CTA in a time step; a group's barrier counts as bytes."""
        operand = 2 * BATCH_TILE * self.k_per_cta
        partial_sums = 2 * 4 * BATCH_TILE * self.n_per_cta  # written, and read
        return operand + (partial_sums + _BARRIER_BYTES if self.split_k > 1 else 0)

    @property
    def step_us(self) -> float:
        """Estimated microseconds of a time step of a pass."""
        matmuls = self.batch_groups * self.batch_tiles
        return _EXCHANGE_US + matmuls * self.ctas * self.bytes_per_step / _BYTES_PER_US

    def fits(self, num_sms: int) -> bool:
        """Whether a GPU with this many SMs can run it, with all CTAs resident at once."""
        granularity, largest = _WGMMA_N
        return (
            self.units % granularity == 0
            and self.hidden % (self.units * self.split_k) == 0
            and self.batch_groups * self.ctas <= num_sms
            and self.k % (self.split_k * SWIZZLE) == 0
            and self.n_per_cta <= largest
            and self.smem_bytes <= _SMEM_BYTES
        )


def choose_tilings(
    hidden: int, gates: int, num_sms: int, split_k: int | None = None
) -> tuple[Tiling, Tiling] | None:
    """Tilings of a layer's forward and backward matmul; None if no tiling fits the GPU.

    Forward, the state [batch, hidden] meets the recurrent kernel; backward, the gradients of
    the hidden gates [batch, gates * hidden] meet its transpose. Takes the fewest units per
    CTA (so the most SMs) that fit both, then backward the split with the least traffic. Forward it
    takes the smallest split, for each larger one was slower on an H200, see docs/kernels.md.

    Args:
      hidden: units of the layer.
      gates: of its cell.
      num_sms: of the GPU.
      split_k: of the backward tiling; None: that with the least traffic.
    """
    granularity, largest = _WGMMA_N
    for units in range(granularity, largest + 1, granularity):
        candidates = [
            [Tiling(hidden, k, outputs, units, split_k) for split_k in _SPLITS]
            for k, outputs in ((hidden, gates), (gates * hidden, 1))
        ]
        forward, backward = ([t for t in tilings if t.fits(num_sms)] for tilings in candidates)
        backward = [tiling for tiling in backward if split_k in (None, tiling.split_k)]
        if forward and backward:
            return forward[0], min(backward, key=attrgetter("bytes_per_step"))
    return None


def choose_decode_tiling(hidden: int, gates: int, vocab_size: int, num_sms: int) -> Tiling | None:
    """The tiling of a decoding step's matmul; None if no tiling fits the GPU.

    The state [batch, hidden] meets the recurrent kernel and, as if it were one more gate, the
    kernel of the logits: a CTA computes the logits of `units` tokens, where there are so many.
    Beside both operands, a CTA holds its columns of the table of input gates.

    Args:
      hidden: units of the layer.
      gates: of its cell.
      vocab_size: number of tokens.
      num_sms: of the GPU.
    """
    granularity, largest = _WGMMA_N
    if vocab_size > min(hidden, _MAX_BOX):
        return None
    for units in range(granularity, largest + 1, granularity):
        tiling = Tiling(hidden, hidden, gates + 1, units)
        table = 4 * padded_vocab(vocab_size) * gates * units
        if tiling.fits(num_sms) and tiling.smem_bytes + table <= _SMEM_BYTES:
            return tiling
    return None


def padded_vocab(vocab_size: int) -> int:
    """Rows of the table of input gates in shared memory: TMA copies a multiple of 128 bytes."""
    return -(-vocab_size // 8) * 8


def pack_weights(
    matrix: Float[Array, "k outputs_per_unit hidden"], tiling: Tiling
) -> BFloat16[Array, "ctas n_per_cta k_per_cta"]:
    """Each CTA's tile of the right operand, transposed and in bfloat16."""
    split_k = tiling.split_k
    tiles = matrix.astype(jnp.bfloat16).reshape(
        split_k, tiling.k_per_cta, tiling.outputs_per_unit, tiling.groups, split_k, tiling.units
    )
    return tiles.transpose(3, 0, 4, 2, 5, 1).reshape(
        tiling.ctas, tiling.n_per_cta, tiling.k_per_cta
    )


def to_ctas(
    arrays: Float[Array, "arrays batch hidden"], tiling: Tiling
) -> Float[Array, "ctas arrays batch units"]:
    """Each CTA's units, in one contiguous block per array."""
    split = arrays.reshape(*arrays.shape[:2], tiling.ctas, tiling.units)
    return split.transpose(2, 0, 1, 3)


def from_ctas(
    blocks: Float[Array, "ctas arrays batch units"],
) -> Float[Array, "arrays batch hidden"]:
    """The inverse of `to_ctas`."""
    ctas, arrays, batch, units = blocks.shape
    return blocks.transpose(1, 2, 0, 3).reshape(arrays, batch, ctas * units)
