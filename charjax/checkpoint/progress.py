"""Progress of a run that is saved with it: time, pending losses and the best validation loss."""

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
class Validation:
    """The best validation loss of a run, and the text that it was measured on.

    Attributes:
      best: the lowest validation loss, in nats per character; None before the first.
      since_best: number of evaluations after the best one.
      val_text: SHA-256 of the tokens that `best` was measured on; "" in older versions.
      val_record: how many times the validation text has changed in this run.
    """

    best: float | None
    since_best: int
    val_text: str = ""
    val_record: int = 0

    def update_best(self, val_loss: float) -> bool:
        """Updates `best` and `since_best`; returns whether this validation loss is the best."""
        is_best = val_loss < (math.inf if self.best is None else self.best)
        self.best, self.since_best = (val_loss, 0) if is_best else (self.best, self.since_best + 1)
        return is_best


@dataclass
class Progress:
    """What a resumed run must know of its past, besides the arrays; part of every checkpoint.

    Attributes:
      elapsed_s: seconds of training, over all resumptions.
      losses: mean training loss since the last line of metrics.jsonl, in nats per character.
      validation: the best validation loss.
      ended: why the run has ended; "" while it has not.
      pending: the metrics of this step, if it was saved before its evaluation was done.
      unsampled: whether this step was saved after its evaluation, before its samples were done.
    """

    elapsed_s: float = 0.0
    losses: ExactMean = field(default_factory=ExactMean)
    validation: Validation = field(default_factory=lambda: Validation(None, 0))
    ended: str = ""
    pending: Mapping[str, Any] | None = None
    unsampled: bool = False

    def start_val_record(self, val_text: str) -> None:
        """Forgets the losses measured on the previous validation text.

        Args:
          val_text: SHA-256 of the tokens of the new one.
        """
        self.validation = Validation(None, 0, val_text, self.validation.val_record + 1)
        if self.pending is not None:  # its evaluation will be on the new text
            self.pending = {**self.pending, "val_record": self.validation.val_record}

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; those of `validation` are merged into the top level."""
        values = dataclasses.asdict(self)
        validation: dict[str, Any] = values.pop("validation")
        losses = {"losses": self.losses.partials, "num_losses": self.losses.count}
        return values | losses | validation

    @classmethod
    def from_json(cls, values: Any) -> Progress:
        """The progress that `to_json` wrote; older versions saved every loss, not partial sums.

        Raises:
          InputError: a field is missing, or has another type or an impossible value.
        """
        fields, validation = schema.parse_pair(_ProgressJson, Validation, values, "progress")
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
        return cls(
            fields.elapsed_s, losses, validation, fields.ended, fields.pending, fields.unsampled
        )


def _is_record(values: Mapping[str, Any]) -> bool:
    """Whether these are finite numbers with the keys of a line of metrics.jsonl."""
    return (
        all(map(schema.is_finite, values.values()))
        and "epoch" in values
        and type(values.get("step")) is int
    )


class _ProgressJson(NamedTuple):
    """The JSON of a `Progress` without its `validation`, for `schema.parse_pair`."""

    elapsed_s: float
    losses: list[float]
    ended: str
    num_losses: int | None = None
    pending: Mapping[str, Any] | None = None
    unsampled: bool = False
