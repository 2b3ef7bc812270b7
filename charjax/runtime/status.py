"""The progress of a task, as displays show it: numbers of a training run, their history, times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

_MOST_POINTS = 600  # of a history: more than the columns of a terminal
_OUTLIERS = 0.05  # of the values may be above the top of an axis
_MIN_REFRESH_S = 0.25
_REFRESH_FRACTION = 0.0025  # of the time, at most, is spent on drawing


class TrainingStatus(NamedTuple):
    """The newest numbers of a training run; None: not known at this step.

    Attributes:
      train_loss: nats per character.
      val_loss: nats per character.
      best: the best validation loss so far.
      chars_per_second: training speed.
    """

    train_loss: float | None = None
    val_loss: float | None = None
    best: float | None = None
    chars_per_second: float | None = None


class StatusHistory:
    """The statuses of a run by step, thinned to a bounded number.

    Attributes:
      points: (step, status): every n-th that was added, and the last.
    """

    def __init__(self) -> None:
        self.points: list[tuple[int, TrainingStatus]] = []
        self._stride, self._added = 1, 0

    def add(self, step: int, status: TrainingStatus) -> None:
        """Adds a status, unless it is the last one again."""
        if self.points and self.points[-1][1] == status:
            return
        if self._added and (self._added - 1) % self._stride:
            self.points.pop()  # it was there only as the last
        self.points.append((step, status))
        self._added += 1
        if len(self.points) == _MOST_POINTS:
            self.points = [*self.points[:-1:2], self.points[-1]]
            self._stride *= 2

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a field of the statuses, where it is known."""
        points = ((step, getattr(status, name)) for step, status in self.points)
        return [(step, value) for step, value in points if value is not None]

    def filled(self, name: str) -> list[float | None]:
        """The field of every status; where it is not known, its last known value."""
        values: list[float | None] = [None]
        for _, status in self.points:
            value = getattr(status, name)
            values.append(values[-1] if value is None else value)
        return values[1:]


def top_of(values: Iterable[float]) -> float:
    """The top of an axis for these values: the first losses would flatten the rest."""
    ordered = sorted(values)
    return ordered[math.ceil((1 - _OUTLIERS) * (len(ordered) - 1))]


class Refresh:
    """Draws again and again, so rarely that it takes next to no time from the task."""

    def __init__(self, shortest_s: float = _MIN_REFRESH_S) -> None:
        self._shortest_s, self._due = shortest_s, -math.inf

    def __call__(self, draw: Callable[[], None]) -> None:
        """Draws if it is time to."""
        started = time.monotonic()
        if started >= self._due:
            draw()
            now = time.monotonic()
            self._due = now + max(self._shortest_s, (now - started) / _REFRESH_FRACTION)


class TimeLeft:
    """Estimates when a task ends, from its speed since its first update."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None  # a resumed task does not start at 0

    def update(self, done: int, total: int) -> str:
        """Such as "1:05 left"; "" at the first update, at the end, and if the total is unknown."""
        now = time.monotonic()
        first, started = self._first = self._first or (done, now)
        if not first < done < total:
            return ""
        return f"{clock((now - started) / (done - first) * (total - done))} left"


def clock(seconds: float) -> str:
    """H:MM:SS, or M:SS below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
