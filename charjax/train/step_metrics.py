"""What the steps report: read late, so that the devices never wait, and kept for the record."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from charjax.config import Config
from charjax.data.batches import Batches
from charjax.errors import DivergedError
from charjax.train.progress import Clock, Progress
from charjax.train.step import StepMetrics


class Tally:
    """The running figures of a run; the losses lie in its progress, which checkpoints save."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        progress: Progress,
        *,
        skipped: int,
        report: Callable[[str], None],
    ) -> None:
        """Takes the run up where it is.

        Args:
          config: the run.
          folder: its folder, for messages.
          progress: gets the losses of the steps.
          skipped: updates that were not finite so far.
          report: is told of more of them.
        """
        self._config, self._folder, self._progress = config, folder, progress
        self._skipped, self._report = skipped, report
        self._grad_norm = math.nan
        self._steps = 0  # since the last record, or since the run was taken up
        self._pending: tuple[StepMetrics, int] | None = None

    def add(self, metrics: StepMetrics, step: int) -> None:
        """Keeps the metrics of a dispatch that ends at a step, and reads those of the one before.

        Raises:
          DivergedError: as `catch_up`.
        """
        self.catch_up()
        self._pending = metrics, step

    def catch_up(self) -> None:
        """Reads what is still unread, which waits for it.

        Raises:
          DivergedError: more updates than allowed were not finite.
        """
        if self._pending is None:
            return
        (metrics, step), self._pending = self._pending, None
        losses, skipped = np.asarray(metrics.loss), int(metrics.skipped[-1])
        self._steps += losses.size
        self._progress.losses += [float(x) for x in losses if math.isfinite(x)]
        self._grad_norm = float(metrics.grad_norm[-1])
        if skipped > self._skipped:
            self._report(
                f"step {step:,}: {skipped - self._skipped} updates were not finite and "
                f"were skipped, {skipped} in all"
            )
        self._skipped = skipped
        if skipped > self._config.train.max_skipped:
            raise self.diverged(f"{skipped} updates up to step {step} were not finite")

    def take_record(
        self, step: int, batches: Batches, clock: Clock, schedule: Callable[[int], SupportsFloat]
    ) -> dict[str, Any]:
        """The record of the steps since the last one, which begins anew.

        Args:
          step: the last of them.
          batches: what they read.
          clock: of the run; a lap ends here.
          schedule: number of the update, from 0 -> learning rate.

        Returns:
          What `charjax.train.metrics.MetricsLog` writes, but for the validation.
        """
        losses, self._progress.losses = self._progress.losses, []
        steps, self._steps = self._steps, 0
        chars = batches.chars_per_epoch / batches.steps_per_epoch * steps
        record = {
            "step": step,
            "epoch": round(step / batches.steps_per_epoch, 4),
            "time_s": round(clock.seconds(), 3),
            "chars_per_second": round(chars / clock.lap(), 1),
            "learning_rate": float(schedule(max(step - self._skipped, 1) - 1)),
        }
        if losses:
            record["train_loss"] = math.fsum(losses) / len(losses)
        if math.isfinite(self._grad_norm):
            record["grad_norm"] = self._grad_norm
        if self._skipped:
            record["skipped"] = self._skipped
        return record

    def diverged(self, what: str) -> DivergedError:
        """The error of a run that left the finite numbers: what happened, and what to try."""
        return DivergedError(
            f"{self._folder}: diverged: {what}; what was saved is kept; in another --workdir, "
            "try a smaller config.optim.learning_rate than "
            f"{self._config.optim.learning_rate:g}"
        )
