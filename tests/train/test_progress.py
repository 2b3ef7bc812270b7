from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.train import progress
from charjax.train.progress import Clock, Progress

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(finite, st.lists(finite), finite | st.just(math.inf), st.integers(0), st.text())
def test_progress_survives_json(elapsed_s, losses, best, since_best, ended):
    past = Progress(elapsed_s, losses, best, since_best, ended)
    assert Progress.from_json(json.loads(json.dumps(past.to_json(), allow_nan=False))) == past


@given(st.lists(st.floats(0, 10), min_size=1))
def test_the_best_is_the_lowest_and_its_age_is_counted(losses):
    past = Progress()
    better = [past.note_loss(loss) for loss in losses]
    assert past.best == min(losses)
    assert past.since_best == len(losses) - 1 - losses.index(min(losses))
    assert better == [loss < min([math.inf, *losses[:i]]) for i, loss in enumerate(losses)]


@pytest.fixture
def time_is(monkeypatch):
    """Sets the monotonic time."""

    def is_(now: float) -> None:
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))

    is_(1000.0)
    return is_


def test_the_clock_continues_over_resumptions(time_is):
    clock = Clock(before=500.0)
    assert clock.seconds() == 500
    time_is(1007.0)
    assert clock.seconds() == 507
    assert clock.lap() == 7  # what was before is not part of the first lap


def test_pauses_are_kept_out_of_laps_but_not_out_of_the_time(time_is):
    clock = Clock(before=0.0)
    time_is(1002.0)
    with clock.paused():
        time_is(1012.0)
    time_is(1015.0)
    assert clock.lap() == 5
    assert clock.seconds() == 15
    time_is(1016.0)
    assert clock.lap() == 1


def test_a_lap_that_ends_in_a_pause_ended_where_that_began(time_is):
    clock = Clock(before=0.0)
    time_is(1002.0)
    with clock.paused():
        time_is(1005.0)
        assert clock.lap() == 2
        time_is(1006.0)
    time_is(1007.0)
    assert clock.lap() == 1


def test_a_lap_is_never_zero(time_is):
    clock = Clock(before=0.0)
    assert clock.lap() > 0
    assert clock.lap() > 0
