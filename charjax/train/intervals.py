"""When a run does what, in steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from charjax.config import TrainConfig


@dataclass(frozen=True)
class Plan:
    """The intervals of a run, in steps.

    Attributes:
      total: the last step; 0 where only the clock ends the run.
      log: between records of the training loss.
      evaluate: between evaluations.
      checkpoint: between checkpoints.
      sample: between live samples.
      dispatch: steps sent to the devices at once; divides all the others.
    """

    total: int
    log: int
    evaluate: int
    checkpoint: int
    sample: int
    dispatch: int

    @property
    def intervals(self) -> tuple[int, ...]:
        """At whose multiples something is due."""
        return (self.log, self.evaluate, self.checkpoint, self.sample)


def make_intervals(config: TrainConfig, steps_per_epoch: int, start: int = 0) -> Plan:
    """The plan that a config means on a text with so many steps an epoch.

    Every stop lies on a multiple of `dispatch`, so that a resumed run sends the
    devices exactly the groups of steps that an uninterrupted one does. So does
    `start`, the step to resume from, even where it was saved under another plan.
    """
    epochs = math.ceil(config.max_epochs * steps_per_epoch)
    limits = [limit for limit in (config.max_steps, epochs) if limit]
    total = min(limits, default=0)
    evaluate = config.eval_every or steps_per_epoch
    checkpoint = config.checkpoint_every or evaluate
    sample = config.sample_every or evaluate
    log = config.log_every or evaluate
    common = math.gcd(start, total, log, evaluate, checkpoint, sample)
    most = min(common, config.steps_per_dispatch)
    dispatch = max(n for n in range(1, most + 1) if common % n == 0)
    return Plan(total, log, evaluate, checkpoint, sample, dispatch)


def dispatch_blockers(config: TrainConfig, plan: Plan) -> tuple[int, dict[str, int]]:
    """What keeps a plan from a longer dispatch.

    Returns:
      The dispatch that the fewest fields rule out, of those the longest; and these fields,
      each with its steps.
    """
    # An interval that was not given follows another; 0 is a multiple of all.
    stops = {
        "train.max_steps": plan.total,
        "train.eval_every": plan.evaluate,
        "train.checkpoint_every": config.checkpoint_every,
        "train.sample_every": config.sample_every,
        "train.log_every": config.log_every,
    }
    most = min([config.steps_per_dispatch, *(steps for steps in stops.values() if steps > 1)])

    def against(dispatch: int) -> dict[str, int]:
        return {name: steps for name, steps in stops.items() if steps % dispatch}

    best = min(range(most, 0, -1), key=lambda n: (n == 1, len(against(n))))
    return best, against(best)
