"""Plan of a layer's kernels: their tilings, and in how many passes they take the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import NamedTuple

from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE, Tiling, choose_tilings

# Units per CTA up to which batch groups and tiles in turn are taken unasked. An array of a tile is
# a register of each thread for every two units; with 32 units the residuals of a GRU fill half of
# the 255.
_MAX_UNITS = 16
_TILES_IN_TURN = 2  # at most, unasked


@dataclass(frozen=True)
class LaunchConfig:
    """How the kernels are launched.

    Attributes:
      num_sms: SMs of the GPU; by default those of an H100 SXM or H200.
      batch_tiles: most batch tiles of `BATCH_TILE` rows per batch group, in turn at each time
        step; None: two, where that saves a pass and needs no more padding.
      batch_groups: see `Tiling.batch_groups`; None: the number with the shortest estimated time.
      split_k: CTAs per split-K group of the backward pass; None: those with the least estimated
        traffic.
    """

    num_sms: int = 132
    batch_tiles: int | None = None
    batch_groups: int | None = None
    split_k: int | None = None


class Plan(NamedTuple):
    """How the kernels of a layer take a batch.

    Attributes:
      passes: how many, one after another in a launch; the last may have rows of padding.
      forward: tiling of a forward step's matmul.
      backward: of a backward step's, with the same rows and units.
    """

    passes: int
    forward: Tiling
    backward: Tiling

    @property
    def rows(self) -> int:
        """Batch rows of all passes, padding included."""
        return self.passes * self.forward.rows

    @property
    def step_us(self) -> float:
        """Estimated microseconds of a time step of all passes, forward and backward."""
        return self.passes * (self.forward.step_us + self.backward.step_us)


def make_plan(hidden: int, gates: int, batch: int, launch: LaunchConfig) -> Plan | None:
    """The plan with the shortest estimated time; None if no tiling of the layer fits the GPU.

    Args:
      hidden: units of the layer.
      gates: of its cell.
      batch: rows of the batch.
      launch: how the kernels are launched.
    """
    if launch.batch_groups is not None:
        return _plan(hidden, gates, batch, launch, launch.batch_groups)
    most = min(-(-batch // BATCH_TILE), launch.num_sms)
    fitting: list[Plan] = []
    for groups in range(1, most + 1):
        plan = _plan(hidden, gates, batch, launch, groups)
        if plan is None or (groups > 1 and plan.forward.units > _MAX_UNITS):
            break  # more groups have fewer SMs each, so more units per CTA
        fitting.append(plan)
    return min(fitting, key=attrgetter("step_us"), default=None)


def _plan(hidden: int, gates: int, batch: int, launch: LaunchConfig, groups: int) -> Plan | None:
    """The fewest passes of so many batch groups, with the least padding."""
    tilings = choose_tilings(hidden, gates, launch.num_sms // groups, launch.split_k)
    if tilings is None:
        return None
    tiles_of_group = -(-batch // (BATCH_TILE * groups))
    most = launch.batch_tiles or _most_in_turn(tilings[0], tiles_of_group)
    passes = -(-tiles_of_group // most)
    in_turn = -(-tiles_of_group // passes)
    return Plan(passes, *(replace(t, batch_groups=groups, batch_tiles=in_turn) for t in tilings))


def _most_in_turn(tiling: Tiling, tiles_of_group: int) -> int:
    """How many tiles a batch group takes in turn, if nothing else is asked for."""
    has_registers = tiling.units <= _MAX_UNITS
    return _TILES_IN_TURN if has_registers and tiles_of_group % _TILES_IN_TURN == 0 else 1
