"""How far a run has come, apart from its weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """The history of a run that its next steps depend on; part of every checkpoint.

    Attributes:
      elapsed_s: seconds of training, over all resumptions.
      losses: of the steps since the last record of the metrics, in nats per character.
      best: the lowest validation loss, in nats per character; infinite before the first.
      since_best: number of evaluations after the best one.
      ended: why the run has ended, or "".
    """

    elapsed_s: float = 0.0
    losses: list[float] = field(default_factory=list)
    best: float = math.inf
    since_best: int = 0
    ended: str = ""

    def update_best(self, val_loss: float) -> bool:
        """Takes a validation loss into account; returns whether it is the best so far."""
        is_best = val_loss < self.best
        self.since_best = 0 if is_best else self.since_best + 1
        self.best = min(val_loss, self.best)
        return is_best

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; an infinite `best` becomes None."""
        values = dataclasses.asdict(self)
        return values | {"best": self.best if math.isfinite(self.best) else None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Progress:
        """The progress that `to_json` wrote."""
        best = values["best"]
        return cls(**{**values, "best": math.inf if best is None else best})
