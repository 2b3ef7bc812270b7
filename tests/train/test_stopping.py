from __future__ import annotations

import signal

import pytest

from charjax.checkpoint.progress import Progress, Validation
from charjax.runtime.signals import StopSignals
from charjax.train.intervals import make_intervals
from charjax.train.stopping import StopFlags, end_reason

from .tiny import config_of


def test_one_process_sees_a_signal_at_once_and_several_agree_at_the_next_sync(monkeypatch):
    signals, late = StopSignals(), []
    alone = StopFlags(signals, lambda: bool(late), lambda: False)
    monkeypatch.setattr("charjax.train.stopping.is_multiprocess", lambda: True)
    among_others = StopFlags(signals, lambda: bool(late), lambda: False)

    def flags(stop: StopFlags) -> tuple[int | None, bool]:
        stop.sync()
        return stop.signal, stop.time_is_up

    assert flags(alone) == flags(among_others) == (None, False)
    signals.received = signal.SIGTERM
    late.append(True)
    assert alone.signal == signal.SIGTERM
    assert not alone.time_is_up  # only at the next sync
    assert flags(alone) == (signal.SIGTERM, True)
    assert flags(among_others) == (None, False)  # as of the sync before
    assert flags(among_others) == (signal.SIGTERM, True)


@pytest.mark.parametrize(
    ("step", "since_best", "time_is_up", "reason"),
    [
        (10, 0, False, ""),
        (40, 0, False, "step 40 of 40 is done"),
        (80, 0, False, "80 steps are done, more than the limit of 40"),
        (10, 3, False, "no better validation loss in 3 evaluations"),
        (10, 0, True, "train.max_minutes=2 have passed"),
    ],
)
def test_the_reason_for_the_end_is_named(step, since_best, time_is_up, reason):
    train = config_of(train={"patience": 3, "max_minutes": 2.0}).train
    progress = Progress(validation=Validation(1.0 if since_best else None, since_best))
    intervals = make_intervals(train, 32)
    assert end_reason(train, intervals, step, progress, time_is_up=time_is_up) == reason
