"""Plan of a layer's launches: how many rows each has, and the tilings of its two kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple

from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE, Tiling, choose_tilings

# Units per CTA up to which batch groups are taken unasked. An array of a tile is a register of
# each thread for every two units; with 32 units the residuals of a GRU fill half of the 255.
_MAX_UNITS = 16


@dataclass(frozen=True)
class LaunchConfig:
    """How the kernels are launched.

    Attributes:
      num_sms: SMs of the GPU; by default those of an H100 SXM or H200.
      cluster: CTAs per thread block cluster, 1 or 2; see `Tiling.cluster`.
      batch_tiles: most batch tiles of `BATCH_TILE` rows per batch group, in turn at each time
        step; 1, the default: one launch after another. Not measured on a GPU yet.
      batch_groups: see `Tiling.batch_groups`; None: the number with the shortest estimated time.
      interpret: parameters of Pallas' interpret mode for GPUs, with which tests run on a CPU.

    Raises:
      ValueError: `cluster` and `batch_tiles` or `batch_groups` are both above 1.
    """

    num_sms: int = 132
    cluster: int = 1
    batch_tiles: int = 1
    batch_groups: int | None = None
    interpret: Any = None

    def __post_init__(self) -> None:
        # A CTA would multicast a tile's operand into shared memory from which another CTA of the
        # cluster still multiplies the tile before. Batch groups could have them, but they are slow.
        if self.cluster > 1 and max(self.batch_tiles, self.batch_groups or 1) > 1:
            raise ValueError("clusters run one batch tile per launch")


class Plan(NamedTuple):
    """The launches of a layer, one after another.

    Attributes:
      launches: how many; the last may have rows of padding.
      forward: tiling of a forward step's matmul.
      backward: of a backward step's, with the same rows and units.
    """

    launches: int
    forward: Tiling
    backward: Tiling

    @property
    def rows(self) -> int:
        """Batch rows of all launches, padding included."""
        return self.launches * self.forward.rows

    @property
    def step_us(self) -> float:
        """Estimated microseconds of a time step of all launches, forward and backward."""
        return self.launches * (self.forward.step_us + self.backward.step_us)


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
    most = min(-(-batch // BATCH_TILE), launch.num_sms) if launch.cluster == 1 else 1
    fitting: list[Plan] = []
    for groups in range(1, most + 1):
        plan = _plan(hidden, gates, batch, launch, groups)
        if plan is None or (groups > 1 and plan.forward.units > _MAX_UNITS):
            break  # more groups have fewer SMs each, so more units per CTA
        fitting.append(plan)
    return min(fitting, key=attrgetter("step_us"), default=None)


def _plan(hidden: int, gates: int, batch: int, launch: LaunchConfig, groups: int) -> Plan | None:
    """The fewest launches of so many batch groups, with the least padding."""
    tilings = choose_tilings(hidden, gates, launch.num_sms // groups, launch.cluster)
    if tilings is None:
        return None
    tiles = -(-batch // BATCH_TILE)
    launches = -(-tiles // (groups * launch.batch_tiles))
    tiles_of_group = -(-tiles // (groups * launches))
    return Plan(
        launches, *(replace(t, batch_groups=groups, batch_tiles=tiles_of_group) for t in tilings)
    )
