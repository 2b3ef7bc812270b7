"""What asks a run to stop from outside, a signal or the clock, heard by all processes alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from charjax.processes import Exchange, several
from charjax.train.signals import StopSignals


class Stopping:
    """The wishes of all processes: as they are with one, as of the last `ask` with several.

    So several processes never hold different opinions between two calls.
    """

    def __init__(self, signals: StopSignals, late: Callable[[], bool]) -> None:
        """Takes the signals of this process, and what knows whether its time is up."""
        self._signals, self._late = signals, late
        self._exchange = Exchange(2) if several() else None
        self._agreed = self._own()

    @property
    def signal(self) -> int | None:
        """The number of the signal received; None: none."""
        return self._wishes()[0] or None

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return bool(self._wishes()[1])

    def ask(self) -> None:
        """Brings both up to date. With several processes, all call this after every dispatch."""
        if self._exchange is not None:
            self._agreed = self._exchange(self._own())

    def _wishes(self) -> Sequence[int]:
        return self._own() if self._exchange is None else self._agreed

    def _own(self) -> Sequence[int]:
        return self._signals.received or 0, int(self._late())
