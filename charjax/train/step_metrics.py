"""Collects the metrics of training steps into the records of metrics.jsonl."""

from __future__ import annotations

import logging
import math
from typing import Any

import jax
import numpy as np

from charjax.checkpoint.progress import ExactMean
from charjax.config import Config
from charjax.data.batches import Batches
from charjax.errors import DivergedError
from charjax.model.cells import CELLS
from charjax.runtime.display import counted
from charjax.train.clock import Clock
from charjax.train.step import StepMetrics

_logger = logging.getLogger(__name__)


def step_flops(config: Config, vocab_size: int) -> int:
    """Model FLOPs of a training step: 6 for each token and each weight that it is multiplied by.

    These are 2 in the forward pass and 4 in the backward pass, as in the model FLOPs utilization of
    Chowdhery et al. 2022 (arXiv:2204.02311, appendix B). A lookup has none: neither the embedding
    nor, with one-hot input, the kernel of the first layer, unless rounds gate that input.
    Elementwise operations, the optimizer, and what `model.remat` computes again do not count.

    Args:
      config: the run.
      vocab_size: number of tokens.
    """
    model, data, cell = config.model, config.data, CELLS[config.model.cell]
    first = model.embed or (vocab_size if cell.rounds else 0)
    features = first + (model.layers - 1) * model.hidden  # inputs of all layers
    rounds = cell.rounds * model.hidden * features
    if cell.has_recurrent_kernel:
        features += model.layers * model.hidden  # the states before each step
    recurrent = cell.gates * model.hidden * features + rounds
    num_predicted = 1 if data.targets == "last" and not model.remat else data.seq_len
    output = model.hidden * vocab_size
    return 6 * data.batch_size * (data.seq_len * recurrent + num_predicted * output)


class StepMetricsBuffer:
    """Reads the metrics of steps, one dispatch late, so that no device waits for the host.

    Attributes:
      losses: mean of the finite losses since the last record, in nats per character.
    """

    def __init__(self, losses: ExactMean, skipped: int, max_skipped: int) -> None:
        """Starts with the values of a new or resumed run.

        Args:
          losses: those of the steps after the last record, as the checkpoint saved them.
          skipped: number of updates skipped so far in the run.
          max_skipped: how many may be.
        """
        self.losses = losses
        self._skipped, self._max_skipped = skipped, max_skipped
        self._learning_rate = self._grad_norm = math.nan
        self._num_steps = 0  # since the last record, in this process
        self._unread: tuple[StepMetrics, int] | None = None

    def push(self, metrics: StepMetrics, step: int) -> int | None:
        """Takes the metrics of the dispatch that ends at `step`; reads those of the previous one.

        Returns:
          The step at which the previous one ended; None if it was read before.

        Raises:
          DivergedError: see `flush`.
        """
        previous = self._unread[1] if self._unread else None
        self.flush()
        self._unread = metrics, step
        return previous

    def flush(self) -> None:
        """Waits for the last dispatch and reads its metrics.

        Raises:
          DivergedError: more than `max_skipped` updates were not finite.
        """
        if self._unread is None:
            return
        (unread, step), self._unread = self._unread, None
        # Copied whole: an index would be a program on the device, behind the next dispatch.
        metrics = jax.device_get(unread)
        losses, skipped = metrics.loss, int(metrics.skipped[-1])
        self._num_steps += losses.size
        for loss in losses[np.isfinite(losses)].tolist():
            self.losses.add(loss)
        self._learning_rate = float(metrics.learning_rate[-1])
        self._grad_norm = float(metrics.grad_norm[-1])
        if skipped > self._skipped:
            _logger.warning(
                f"step {step:,}: skipped "
                f"{counted(skipped - self._skipped, 'non-finite update')}, {skipped:,} in all"
            )
        self._skipped = skipped
        if skipped > self._max_skipped:
            raise DivergedError(f"{counted(skipped, 'non-finite update')} up to step {step}")

    @property
    def is_idle(self) -> bool:
        """Whether the devices have finished the last dispatch."""
        return self._unread is None or self._unread[0].loss.is_ready()  # type: ignore[attr-defined]

    def pop_record(self, step: int, batches: Batches, clock: Clock, flops: int) -> dict[str, Any]:
        """The record of the steps since the last one; see `charjax.train.metrics.MetricsLog`.

        Args:
          step: the last step.
          batches: the batches of the run.
          clock: the clock of the run; starts a new lap.
          flops: of a step, see `step_flops`.
        """
        losses, self.losses = self.losses, ExactMean()
        num_steps, self._num_steps = self._num_steps, 0
        chars = batches.chars_per_epoch / batches.steps_per_epoch * num_steps
        stalled_s, lap_s = clock.stalled_s, clock.lap()
        record = {
            "step": step,
            "epoch": round(step / batches.steps_per_epoch, 4),
            "time_s": round(clock.seconds(), 3),
        }
        if num_steps:
            record |= {
                "chars_per_second": round(chars / lap_s, 1),
                "flops_per_second": round(flops * num_steps / lap_s),
                "input_stall": round(min(1.0, stalled_s / lap_s), 4),
                "learning_rate": self._learning_rate,
            }
        if losses.count:
            record["train_loss"] = losses.value()
        if math.isfinite(self._grad_norm):
            record["grad_norm"] = self._grad_norm
        if self._skipped:
            record["skipped"] = self._skipped
        return record
