from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charjax.runtime.status import Refresh, StatusHistory, TrainingStatus


@settings(max_examples=20)
@given(st.integers(1, 4000))
def test_a_history_is_bounded_and_has_the_first_and_the_last(count):
    history = StatusHistory()
    for step in range(count):
        history.add(step, TrainingStatus(train_loss=float(step)))
        history.add(step, TrainingStatus(train_loss=float(step)))  # the same again
    steps = [step for step, _ in history.points]
    assert len(steps) == min(count, len(steps)) < 600
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, count - 1)
    assert len({b - a for a, b in itertools.pairwise(steps[:-1])}) <= 1
    assert history.series("train_loss") == [(step, float(step)) for step in steps]


def test_unknown_values_are_left_out_or_filled():
    history = StatusHistory()
    for step, loss in enumerate((None, 2.0, None, 1.0)):
        history.add(step, TrainingStatus(train_loss=float(step), val_loss=loss))
    assert history.series("val_loss") == [(1, 2.0), (3, 1.0)]
    assert history.filled("val_loss") == [None, 2.0, 2.0, 1.0]


@given(st.lists(st.floats(0.0001, 0.05), min_size=1, max_size=9))
def test_drawing_takes_at_most_a_small_part_of_the_time(durations):
    now, drawing, refresh, left = 0.0, 0.0, Refresh(), [0.0, *durations]

    def draw() -> None:
        nonlocal now, drawing
        duration = left.pop()
        now, drawing = now + duration, drawing + duration

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: now)
        while left:
            refresh(draw)
            now += 0.2
    assert drawing / now <= 0.0025
    assert now >= 0.25 * len(durations)
