"""Stopping criteria: a signal, the time limit, the last step, no better validation loss."""

from __future__ import annotations

import time
from collections.abc import Sequence

from charjax.runtime.display import counted
from charjax.runtime.distributed import Exchange, all_max, is_multiprocess
from charjax.runtime.signals import StopSignals
from charjax.train.run import Run, RunState


class Stopping:
    """Says whether a run stops; its flags (signal, time limit, checkpoint due) are synchronized.

    Several processes see flags change only at `sync`, so that all of them stop or save at the same
    step. A single process sees a signal at once. The other flags change only at `sync`, as the time
    limit must not end a run between the evaluation and the checkpoint of a step.

    Attributes:
      signals: those that this process receives, once entered as a context.
    """

    def __init__(self, run: Run, state: RunState) -> None:
        """Sets the flags of a run."""
        self.signals = StopSignals()
        self._run, self._state = run, state
        self._exchange = Exchange(3) if is_multiprocess() else None
        self._agreed: Sequence[int] = all_max(self._local())

    @property
    def signal(self) -> int | None:
        """The number of the signal received, or None."""
        return self.signals.received if self._exchange is None else self._agreed[0] or None

    @property
    def checkpoint_is_due(self) -> bool:
        """Whether the last checkpoint was saved too long ago."""
        return bool(self._agreed[2])

    def stops_here(self) -> bool:
        """Whether the run stops at this step; sets `progress.ended` unless a signal stops it."""
        self._state.progress.ended = self._end_reason()
        return bool(self._state.progress.ended) or self.signal is not None

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
        train = self._run.meta.config.train
        limit_s, interval_s = 60 * train.max_minutes, 60 * train.checkpoint_minutes
        # Never before the first step, which is then saved.
        time_is_up = self._state.step > 0 and 0 < limit_s <= self._state.clock.seconds()
        checkpoint_is_due = 0 < interval_s <= time.monotonic() - self._state.saved_at
        return self.signals.received or 0, int(time_is_up), int(checkpoint_is_due)

    def _end_reason(self) -> str:
        """Why the run ends at this step, other than by a signal; "" if it continues."""
        step, total = self._state.step, self._run.intervals.total
        if 0 < total < step:
            return f"{step:,} steps are done, more than the limit of {total:,}"
        if step == total > 0:
            return f"step {step:,} of {total:,} is done"
        train, since_best = self._run.meta.config.train, self._state.progress.validation.since_best
        if train.patience and since_best >= train.patience:
            return f"no better validation loss in {counted(since_best, 'evaluation')}"
        return f"train.max_minutes={train.max_minutes:g} have passed" if self._agreed[1] else ""
