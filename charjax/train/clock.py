"""The training time of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Measures the time of a run over all its resumptions, and laps from which pauses are excluded.

    Attributes:
      stalled_s: seconds of this lap in which the devices waited for batches.
    """

    def __init__(self, elapsed_s: float) -> None:
        """Starts the clock.

        Args:
          elapsed_s: seconds that the run took in earlier processes.
        """
        now = time.monotonic()
        self._start, self._lap_start = now - elapsed_s, now
        self._pause_start: float | None = None
        self.stalled_s = 0.0

    def seconds(self) -> float:
        """Seconds that the run has taken, earlier processes and pauses included."""
        return time.monotonic() - self._start

    def lap(self) -> float:
        """Seconds since the last lap, pauses excluded; always positive. Starts a new lap."""
        now = time.monotonic() if self._pause_start is None else self._pause_start
        seconds, self._lap_start, self.stalled_s = now - self._lap_start, now, 0.0
        return max(seconds, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context manager: its duration does not count in the lap."""
        self._pause_start = start = time.monotonic()
        yield
        self._lap_start += time.monotonic() - start
        self._pause_start = None
