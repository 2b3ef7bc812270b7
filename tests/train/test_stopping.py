from __future__ import annotations

import signal
from unittest.mock import Mock

import pytest

from charjax.checkpoint.progress import Progress, Validation
from charjax.train.clock import Clock
from charjax.train.intervals import make_intervals
from charjax.train.run import Run, RunState
from charjax.train.stopping import Stopping

from .tiny import config_of


def stopping(
    *, step: int = 1, since_best: int = 0, minutes: float = 0.0
) -> tuple[Stopping, Progress]:
    """Of a run of 40 steps with patience for three evaluations and a limit of two minutes."""
    config = config_of(train={"patience": 3, "max_minutes": 2.0})
    run = Mock(Run, meta=Mock(config=config), intervals=make_intervals(config.train, 32))
    progress = Progress(validation=Validation(1.0 if since_best else None, since_best))
    state = Mock(RunState, step=step, progress=progress, clock=Clock(60 * minutes), saved_at=0.0)
    return Stopping(run, state), progress


def test_one_process_sees_a_signal_at_once_and_several_agree_at_the_next_sync(monkeypatch, time_is):
    alone, progress = stopping()
    monkeypatch.setattr("charjax.train.stopping.is_multiprocess", lambda: True)
    among_others, _ = stopping()
    alone.signals.received = among_others.signals.received = signal.SIGTERM
    time_is(120.0)
    assert alone.signal == signal.SIGTERM
    assert alone.stops_here()
    assert not progress.ended  # the time limit waits for the next sync
    alone.sync()
    assert alone.stops_here()
    assert progress.ended == "train.max_minutes=2 have passed"
    among_others.sync()  # as of the sync before
    assert not among_others.stops_here()
    among_others.sync()
    assert among_others.signal == signal.SIGTERM


def test_several_processes_agree_before_the_first_step(monkeypatch):
    """A resumed run may be so close to its time limit that it is over for some of them alone."""
    monkeypatch.setattr(
        "charjax.train.stopping.all_max", lambda values: [*map(max, values, (0, 1, 0))]
    )
    stop, progress = stopping()
    assert stop.stops_here()
    assert progress.ended == "train.max_minutes=2 have passed"


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        ({"step": 10}, ""),
        ({"step": 40}, "step 40 of 40 is done"),
        ({"step": 80}, "80 steps are done, more than the limit of 40"),
        ({"since_best": 3}, "no better validation loss in 3 evaluations"),
        ({"minutes": 2.0}, "train.max_minutes=2 have passed"),
        ({"minutes": 2.0, "step": 0}, ""),
    ],
)
def test_the_reason_for_the_end_is_named(now, reason):
    stop, progress = stopping(**now)
    assert stop.stops_here() == bool(reason)
    assert progress.ended == reason
