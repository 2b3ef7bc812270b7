"""When a run stops: a signal, the time limit, the last step, or no better validation loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from charjax.checkpoint.progress import Progress
from charjax.config import TrainConfig
from charjax.runtime.display import counted
from charjax.runtime.distributed import Exchange, is_multiprocess
from charjax.runtime.signals import StopSignals
from charjax.train.intervals import Intervals


class StopFlags:
    """Flags (signal, time limit, checkpoint due), agreed across processes at every `sync`.

    Several processes see flags change only at `sync`, so that all of them stop or save at the same
    step. A single process sees a signal at once. The other flags change only at `sync`, as the time
    limit must not end a run between the evaluation and the checkpoint of a step.
    """

    def __init__(
        self,
        signals: StopSignals,
        time_is_up: Callable[[], bool],
        checkpoint_is_due: Callable[[], bool],
    ) -> None:
        """Sets the flags.

        Args:
          signals: the signals that this process receives.
          time_is_up: says whether the time limit is reached.
          checkpoint_is_due: says whether the last checkpoint was saved too long ago.
        """
        self._signals, self._checks = signals, (time_is_up, checkpoint_is_due)
        self._exchange = Exchange(1 + len(self._checks)) if is_multiprocess() else None
        self._agreed = self._local()

    @property
    def signal(self) -> int | None:
        """The number of the signal received, or None."""
        number = self._local()[0] if self._exchange is None else self._agreed[0]
        return number or None

    @property
    def time_is_up(self) -> bool:
        """Whether the time limit is reached."""
        return bool(self._agreed[1])

    @property
    def checkpoint_is_due(self) -> bool:
        """Whether the last checkpoint was saved too long ago."""
        return bool(self._agreed[2])

    def sync(self) -> None:
        """Updates all flags. All processes must call it after every dispatch."""
        local = self._local()
        self._agreed = local if self._exchange is None else self._exchange(local)

    def sync_signal(self) -> int | None:
        """Updates and returns the signal, but no other flag. All processes must call it."""
        if self._exchange is not None:
            self._agreed = [self._exchange(self._local())[0], *self._agreed[1:]]
        return self.signal

    def _local(self) -> Sequence[int]:
        return self._signals.received or 0, *(int(check()) for check in self._checks)


def end_reason(
    config: TrainConfig, intervals: Intervals, step: int, progress: Progress, *, time_is_up: bool
) -> str:
    """Why a run ends at a step, other than by a signal; "" if it continues."""
    if 0 < intervals.total < step:
        return f"{step:,} steps are done, more than the limit of {intervals.total:,}"
    if step == intervals.total > 0:
        return f"step {step:,} of {intervals.total:,} is done"
    since_best = progress.validation.since_best
    if config.patience and since_best >= config.patience:
        return f"no better validation loss in {counted(since_best, 'evaluation')}"
    return f"train.max_minutes={config.max_minutes:g} have passed" if time_is_up else ""
