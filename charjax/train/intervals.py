"""The schedule of a run: at which steps it logs, evaluates, samples, saves and ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from charjax.config import Config, TrainConfig

STEPS_PER_DISPATCH = 10  # where `train.steps_per_dispatch` is 0, and always allowed
_STEPS_ON_SLICES = 50  # the same where the devices slice their own batches
_MAX_DISPATCH = 1000  # steps
_MAX_DISPATCH_FLOPS = 2e12  # under a minute on two cores
_MAX_FLOPS_ON_SLICES = 2e13  # about a second on a GPU


@dataclass(frozen=True)
class Intervals:
    """The intervals of a run, in steps.

    Attributes:
      total: the last step of the run; 0 if the number of steps is not limited.
      log: between records of the training loss.
      evaluate: between evaluations.
      checkpoint: between checkpoints.
      sample: between samples.
      dispatch: how many steps one call runs on the devices; divides all the others.
    """

    total: int
    log: int
    evaluate: int
    checkpoint: int
    sample: int
    dispatch: int

    def needs_state(self, step: int) -> bool:
        """Whether the run evaluates, samples or saves the state of this step."""
        intervals = (self.evaluate, self.checkpoint, self.sample)
        return any(step % interval == 0 for interval in intervals)


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """The last step of a run, the lower of its limits in steps and epochs; 0 if it has none."""
    limits = config.max_steps, epoch_limit(config, steps_per_epoch)
    return min(filter(None, limits), default=0)


def epoch_limit(config: TrainConfig, steps_per_epoch: int) -> int:
    """The steps of `train.max_epochs`, rounded up; 1.1 epochs of 100 steps are 110."""
    return math.ceil(Fraction(str(config.max_epochs)) * steps_per_epoch)  # 1.1 * 100 > 110


def longest_dispatch(config: Config, parameters: int, *, slices: bool = False) -> int:
    """The largest number of steps per dispatch: `train.steps_per_dispatch`, or less.

    A dispatch cannot be interrupted. So it has at most 1000 steps and a bounded number of
    operations; but ten steps are always allowed.

    Args:
      config: the run.
      parameters: of its model.
      slices: whether the devices slice their own batches; only GPUs and TPUs do.
    """
    flops = 6 * parameters * config.data.batch_size * config.data.seq_len  # of a step, about
    bound = int((_MAX_FLOPS_ON_SLICES if slices else _MAX_DISPATCH_FLOPS) / flops)
    asked = asked_dispatch(config.train, slices=slices)
    return min(asked, max(STEPS_PER_DISPATCH, min(_MAX_DISPATCH, bound)))


def asked_dispatch(config: TrainConfig, *, slices: bool = False) -> int:
    """The number of steps per dispatch that a config asks for, see `longest_dispatch`."""
    return config.steps_per_dispatch or (_STEPS_ON_SLICES if slices else STEPS_PER_DISPATCH)


def make_intervals(
    config: TrainConfig, steps_per_epoch: int, start: int = 0, longest: int = 0
) -> Intervals:
    """The intervals that a config asks for.

    `dispatch` is the largest common divisor of all the others and of `start` that is at most
    `longest`. So no dispatch runs past a step at which something is due, even in a run resumed from
    a step that is not a multiple of the intervals.

    Args:
      config: `eval_every=0` means one epoch; 0 for the other intervals means `eval_every`.
      steps_per_epoch: of the dataset.
      start: the step that the run is resumed from.
      longest: from `longest_dispatch`; 0: what the config asks for.
    """
    total = total_steps(config, steps_per_epoch)
    evaluate = config.eval_every or steps_per_epoch
    checkpoint = config.checkpoint_every or evaluate
    sample = config.sample_every or evaluate
    log = config.log_every or evaluate
    common = math.gcd(start, total, log, evaluate, checkpoint, sample)
    most = min(common, longest or asked_dispatch(config))
    dispatch = next(n for n in range(most, 0, -1) if common % n == 0)
    return Intervals(total, log, evaluate, checkpoint, sample, dispatch)
