"""How the product of a recurrent step is spread over the multiprocessors of a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

LANES = 64  # of a batch that a kernel steps through: the rows of a tensor cores' product
TILE = 64  # bfloat16 numbers in the 128 bytes of shared memory that they read at once
_COLUMNS = (8, 256)  # of such a product: the step, and the most
_SPLITS = (1, 2, 4, 8)
_PIECES = 4  # the most copies that a step's operand comes in

# Of a CTA on Hopper; some is left for barriers and alignment.
_SHARED_BYTES = 226 * 1024
# What a CTA could bring from the L2 cache in the time of a barrier, both estimated.
_BARRIER_BYTES = 50_000


@dataclass(frozen=True)
class Spread:
    """Which CTA (one a multiprocessor) computes what of `operand @ matrix` at every step.

    The operand is [batch, sums], the matrix [sums, outs, hidden]. CTAs stand in groups of
    `split`. A group has the results of `split * units` hidden units; each member computes
    all of them over its part of the sums, and adds up the parts of its own units.

    Attributes:
      hidden: units of the layer.
      sums: numbers that each result is the sum of.
      outs: results for each unit and lane.
      units: hidden units that a CTA owns.
      split: CTAs in a group.
      peers: CTAs, of as many groups, that bring what they all need of the operand together:
        a cluster, to each of which the TMA unit copies what one of them asks for.
    """

    hidden: int
    sums: int
    outs: int
    units: int
    split: int = 1
    peers: int = 1

    @property
    def ctas(self) -> int:
        """How many there are."""
        return self.hidden // self.units

    @property
    def groups(self) -> int:
        """How many groups they stand in."""
        return self.ctas // self.split

    @property
    def part(self) -> int:
        """The rows of the matrix that a CTA has."""
        return self.sums // self.split

    @property
    def columns(self) -> int:
        """The columns of the matrix that a CTA has."""
        return self.split * self.outs * self.units

    @property
    def pieces(self) -> int:
        """In how many copies its operand comes, so that the first is multiplied early."""
        return next(n for n in range(_PIECES, 0, -1) if self.part % (n * TILE) == 0)

    @property
    def piece(self) -> int:
        """The columns of the operand in one of them."""
        return self.part // self.pieces

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a CTA: its part of the matrix, and of the operand."""
        return 2 * self.part * (self.columns + LANES)

    @property
    def traffic(self) -> int:
        """Bytes that a CTA brings at every step, a barrier between parts counted as some."""
        parts = 2 * 4 * LANES * self.columns + _BARRIER_BYTES
        return 2 * LANES * self.part + (parts if self.split > 1 else 0)

    def fits(self, multiprocessors: int) -> bool:
        """Whether a GPU with so many multiprocessors can run it."""
        step, most = _COLUMNS
        return (
            self.units % step == 0
            and self.hidden % (self.units * self.split * self.peers) == 0
            and self.ctas <= multiprocessors
            and self.sums % (self.split * TILE) == 0
            and self.columns <= most
            and self.shared_bytes <= _SHARED_BYTES
        )


def spreads(
    hidden: int, gates: int, multiprocessors: int, peers: int = 1
) -> tuple[Spread, Spread] | None:
    """The quickest, by estimate, for a layer's steps forwards and backwards; None: none fits.

    On as many multiprocessors as there are, then with the least traffic.
    """
    for units in range(_COLUMNS[0], _COLUMNS[1] + 1, _COLUMNS[0]):
        ways = [
            [Spread(hidden, sums, outs, units, split, peers) for split in _SPLITS]
            for sums, outs in ((hidden, gates), (gates * hidden, 1))
        ]
        forward, backward = ([w for w in way if w.fits(multiprocessors)] for way in ways)
        if forward and backward:
            least = partial(min, key=lambda way: way.traffic)
            return least(forward), least(backward)
    return None


def blocks(
    matrix: Float[Array, "sums outs hidden"], spread: Spread
) -> BFloat16[Array, "ctas columns part"]:
    """Each CTA's part of a matrix, transposed and in bfloat16."""
    split = spread.split
    parts = matrix.astype(jnp.bfloat16).reshape(
        split, spread.part, spread.outs, spread.groups, split, spread.units
    )
    return parts.transpose(3, 0, 4, 2, 5, 1).reshape(spread.ctas, spread.columns, spread.part)
