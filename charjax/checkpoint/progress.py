"""Progress of a run that is saved with it: time, pending losses and the best evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from charjax import schema
from charjax.errors import InputError

_MAX_SUM = 1e300  # of losses, which are float32: the mean of larger numbers may overflow


@dataclass
class ExactMean:
    """Streaming mean without rounding error of the sum: equal to `math.fsum(numbers) / count`.

    Non-overlapping partial sums (Shewchuk 1997, Adaptive precision floating-point arithmetic) hold
    the exact sum. Losses need one or two partials; no stream of numbers needs a hundred.

    Attributes:
      partials: a few floats whose exact sum is the sum of the stream.
      count: how many numbers were added.
    """

    partials: list[float] = field(default_factory=list)
    count: int = 0

    @classmethod
    def of(cls, numbers: Iterable[float]) -> ExactMean:
        """The mean of finite numbers."""
        mean = cls()
        for number in numbers:
            mean.add(number)
        return mean

    def add(self, number: float) -> None:
        """Adds a finite number."""
        self.count += 1
        kept = []
        for partial in self.partials:
            large, small = sorted((number, partial), key=abs, reverse=True)
            number = large + small
            if error := small - (number - large):
                kept.append(error)
        self.partials = [*kept, number]

    def value(self) -> float:
        """The mean; at least one number must have been added."""
        return math.fsum(self.partials) / self.count


@dataclass
class Progress:
    """What a resumed run must know of its past, besides the arrays; part of every checkpoint.

    Attributes:
      elapsed_s: seconds of training, over all resumptions.
      losses: mean training loss since the last line of metrics.jsonl, in nats per character.
      best: the lowest validation loss, in nats per character; infinite before the first.
      since_best: number of evaluations after the best one.
      ended: why the run has ended; "" while it has not.
      pending: the metrics of this step, if it was saved before its evaluation was done.
      unsampled: whether this step was saved after its evaluation, before its samples were done.
      val_text: SHA-256 of the tokens that `best` was measured on; "" in older versions.
      val_record: how many times the validation text has changed in this run.
    """

    elapsed_s: float = 0.0
    losses: ExactMean = field(default_factory=ExactMean)
    best: float = math.inf
    since_best: int = 0
    ended: str = ""
    pending: Mapping[str, Any] | None = None
    unsampled: bool = False
    val_text: str = ""
    val_record: int = 0

    def start_val_record(self, val_text: str) -> None:
        """Forgets the losses measured on the previous validation text.

        Args:
          val_text: SHA-256 of the tokens of the new one.
        """
        self.val_text, self.val_record = val_text, self.val_record + 1
        self.best, self.since_best, self.unsampled = math.inf, 0, False

    def update_best(self, val_loss: float) -> bool:
        """Updates `best` and `since_best`; returns whether this validation loss is the best."""
        is_best = val_loss < self.best
        self.since_best = 0 if is_best else self.since_best + 1
        self.best = min(val_loss, self.best)
        return is_best

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; an infinite `best` becomes None."""
        return dataclasses.asdict(self) | {
            "losses": self.losses.partials,
            "num_losses": self.losses.count,
            "best": self.best if math.isfinite(self.best) else None,
        }

    @classmethod
    def from_json(cls, values: Any) -> Progress:
        """The progress that `to_json` wrote; older versions saved every loss, not partial sums.

        Raises:
          InputError: a field is missing, or has another type or an impossible value.
        """
        fields: _ProgressJson = schema.parse(_ProgressJson, values, "progress")
        if fields.num_losses is None:
            losses = ExactMean.of(fields.losses)
        else:
            losses = ExactMean(fields.losses, fields.num_losses)
        is_possible = losses.count >= 0 and bool(losses.count) == bool(losses.partials)
        if not is_possible or max(map(abs, losses.partials), default=0) > _MAX_SUM:
            raise InputError(
                "progress: losses and num_losses are not the sum and number of any losses"
            )
        if fields.pending is not None and not _is_record(fields.pending):
            raise InputError("progress: pending is not a record of metrics")
        others = fields._asdict()
        del others["num_losses"]
        best = math.inf if fields.best is None else fields.best
        return cls(**others | {"losses": losses, "best": best})


def _is_record(values: Mapping[str, Any]) -> bool:
    """Whether these are finite numbers with the keys of a line of metrics.jsonl."""
    return (
        all(map(schema.is_finite, values.values()))
        and {"epoch", "chars_per_second"} <= values.keys()
        and type(values.get("step")) is int
    )


class _ProgressJson(NamedTuple):
    """The JSON of a `Progress`, for `schema.parse`."""

    elapsed_s: float
    losses: list[float]
    best: float | None
    since_best: int
    ended: str
    num_losses: int | None = None
    pending: Mapping[str, Any] | None = None
    unsampled: bool = False
    val_text: str = ""
    val_record: int = 0
