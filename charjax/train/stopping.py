"""Why a run stops: it is over, or a signal or the clock says so, to all processes alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from charjax.config import TrainConfig
from charjax.runtime.distributed import Exchange, is_multiprocess
from charjax.runtime.signals import StopSignals
from charjax.train.intervals import Plan
from charjax.train.progress import Progress


class Stopping:
    """The wishes of all processes, as of the last `ask`; a lone process hears a signal at once.

    So several processes never hold different opinions between two calls, and the clock does not
    end a run in mid-turn, its evaluation left out.
    """

    def __init__(self, signals: StopSignals, late: Callable[[], bool]) -> None:
        """Takes the signals of this process, and what knows whether its time is up."""
        self._signals, self._late = signals, late
        self._exchange = Exchange(2) if is_multiprocess() else None
        self._agreed = self._own()

    @property
    def signal(self) -> int | None:
        """The number of the signal received; None: none."""
        number = self._own()[0] if self._exchange is None else self._agreed[0]
        return number or None

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return bool(self._agreed[1])

    def ask(self) -> None:
        """Brings both up to date. With several processes, all call this after every dispatch."""
        own = self._own()
        self._agreed = own if self._exchange is None else self._exchange(own)

    def _own(self) -> Sequence[int]:
        return self._signals.received or 0, int(self._late())


def why_over(config: TrainConfig, plan: Plan, step: int, progress: Progress, *, late: bool) -> str:
    """Why a run ends at a step without being told to; "" while it goes on."""
    if plan.total and step >= plan.total:
        return f"step {step:,} of {plan.total:,} is done"
    if config.patience and progress.since_best >= config.patience:
        return f"no better validation loss in {progress.since_best} evaluations"
    return f"train.max_minutes={config.max_minutes:g} have passed" if late else ""
