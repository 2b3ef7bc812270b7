"""What asks a run to stop from outside, a signal or the clock, heard by all processes alike."""

from __future__ import annotations

from collections.abc import Callable

from charjax.processes import Exchange, several
from charjax.train.signals import StopSignals


class Stopping:
    """The two wishes, as of the last `ask`; so nothing changes its mind between two dispatches.

    Attributes:
      signal: the number of the signal received, by any process; None: none.
      late: whether the time is up.
    """

    def __init__(self, signals: StopSignals, late: Callable[[], bool]) -> None:
        """Takes the signals of this process, and what knows whether its time is up."""
        self._signals, self._late = signals, late
        self._exchange = Exchange(2) if several() else list
        self.signal: int | None = None
        self.late = late()

    def ask(self) -> None:
        """Brings both up to date. With several processes, all call this after every dispatch."""
        signal, late = self._exchange((self._signals.received or 0, int(self._late())))
        self.signal, self.late = signal or None, bool(late)
