"""What a run knows of its past beside the state, and the clock that it runs by."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """The past of a run; saved with every checkpoint.

    Attributes:
      elapsed_s: seconds of training so far, over all resumptions.
      losses: of the steps since the last record, nats per character.
      best: lowest validation loss so far; infinite before the first.
      since_best: evaluations since then.
      ended: why the run is over, or "".
    """

    elapsed_s: float = 0.0
    losses: list[float] = field(default_factory=list)
    best: float = math.inf
    since_best: int = 0
    ended: str = ""

    def note_loss(self, val_loss: float) -> bool:
        """Takes in a validation loss; whether it is the best so far."""
        better = val_loss < self.best
        self.since_best = 0 if better else self.since_best + 1
        self.best = min(val_loss, self.best)
        return better

    def to_json(self) -> dict[str, Any]:
        """JSON values; an infinite `best` becomes None."""
        values = dataclasses.asdict(self)
        return values | {"best": self.best if math.isfinite(self.best) else None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Progress:
        """The progress that `to_json` wrote."""
        best = values["best"]
        return cls(**{**values, "best": math.inf if best is None else best})


class Clock:
    """Seconds of training: monotonic, continued over resumptions, with laps that skip pauses."""

    def __init__(self, before: float) -> None:
        now = time.monotonic()
        self._started, self._lap_started = now - before, now
        self._pause_began: float | None = None

    def seconds(self) -> float:
        """Since the run's first start."""
        return time.monotonic() - self._started

    def lap(self) -> float:
        """Since the last lap, without pauses, nor what has passed of one that lasts; never 0."""
        now = time.monotonic() if self._pause_began is None else self._pause_began
        seconds, self._lap_started = now - self._lap_started, now
        return max(seconds, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps what happens inside out of the lap."""
        self._pause_began = began = time.monotonic()
        yield
        self._lap_started += time.monotonic() - began
        self._pause_began = None
