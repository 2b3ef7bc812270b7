"""The figures of a record are those of the steps since the one before, and of no other."""

from __future__ import annotations

import math
from pathlib import Path

import jax.numpy as jnp
import pytest

from charjax.data.batches import Batch, Batches
from charjax.errors import DivergedError
from charjax.train.progress import Clock, Progress
from charjax.train.step import StepMetrics
from charjax.train.step_metrics import Tally

from .tiny import config_of


class Batches16(Batches):
    """Of an epoch of 16 steps and 600 characters; nobody asks for one."""

    steps_per_epoch, chars_per_epoch = 16, 600

    def __call__(self, step: int, rows: slice = slice(None)) -> Batch:
        raise AssertionError("a record needs no batch")


BATCHES = Batches16()
CONFIG = config_of(train={"max_skipped": 2})


def metrics_of(losses: list[float], skipped: list[int]) -> StepMetrics:
    return StepMetrics(
        jnp.asarray(losses), jnp.asarray(losses) / 2, jnp.asarray(skipped, jnp.int32)
    )


def tally_of(progress: Progress, skipped: int = 0) -> tuple[Tally, list[str]]:
    lines: list[str] = []
    return Tally(CONFIG, Path("run"), progress, skipped=skipped, report=lines.append), lines


def figures_of(tally: Tally) -> dict[str, float]:
    """Of the steps themselves: a record without what the clock and the place add."""
    record = tally.take_record(40, BATCHES, Clock(0.0), lambda update: update)
    beside = ("step", "epoch", "time_s", "chars_per_second", "learning_rate")
    return {name: value for name, value in record.items() if name not in beside}


def test_a_dispatch_is_read_when_the_next_one_is_on_its_way():
    progress = Progress(losses=[6.0])  # from before the run was resumed
    tally, _ = tally_of(progress)
    tally.add(metrics_of([4.0, 3.0], [0, 0]), 2)
    assert progress.losses == [6.0]
    tally.add(metrics_of([2.0, 1.0], [0, 0]), 4)
    assert progress.losses == [6.0, 4.0, 3.0]
    for _ in range(2):
        tally.catch_up()
        assert progress.losses == [6.0, 4.0, 3.0, 2.0, 1.0]


def test_a_record_takes_the_losses_with_it():
    progress = Progress()
    tally, _ = tally_of(progress)
    assert figures_of(tally) == {}
    tally.add(metrics_of([4.0, 3.0], [0, 0]), 2)
    tally.catch_up()
    assert figures_of(tally) == {"train_loss": 3.5, "grad_norm": 1.5}
    assert progress.losses == []
    assert figures_of(tally) == {"grad_norm": 1.5}


def test_a_record_says_where_the_run_is_and_how_fast_since_the_last_one(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("charjax.train.progress.time.monotonic", lambda: now[0])
    # A loss from before the run was resumed is of the record, but took no time since.
    tally, clock = tally_of(Progress(losses=[0.0]))[0], Clock(50.0)
    tally.add(metrics_of([1.0, 2.0], [0, 0]), 40)
    tally.catch_up()
    now[0] += 3
    assert tally.take_record(40, BATCHES, clock, lambda update: update / 100) == {
        "step": 40,
        "epoch": 2.5,
        "time_s": 53.0,
        "chars_per_second": 25.0,  # two steps of 37.5 characters in three seconds
        "learning_rate": 0.39,
        "train_loss": 1.0,
        "grad_norm": 1.0,
    }
    assert tally.take_record(40, BATCHES, clock, lambda update: 0)["chars_per_second"] == 0


def test_what_is_not_finite_is_counted_said_and_kept_out_of_the_loss():
    tally, lines = tally_of(Progress(), skipped=1)
    tally.add(metrics_of([4.0, math.nan], [1, 2]), 1200)
    tally.add(metrics_of([3.0, 2.0], [2, 2]), 1202)  # the line names the step that it was in
    tally.catch_up()
    assert figures_of(tally) == {"train_loss": 3.0, "grad_norm": 1.0, "skipped": 2}
    (line,) = lines
    assert line.startswith("step 1,200: 1 updates were not finite")
    assert line.endswith("2 in all")


def test_the_learning_rate_is_that_of_the_last_update_and_not_of_the_last_step():
    tally, _ = tally_of(Progress(), skipped=2)
    record = tally.take_record(40, BATCHES, Clock(0.0), lambda update: update)
    assert record["learning_rate"] == 37, "two of the 40 steps updated nothing"


def test_too_much_of_it_ends_the_run():
    tally, _ = tally_of(Progress())
    tally.add(metrics_of([math.inf], [3]), 3)
    with pytest.raises(DivergedError, match=r"^run: diverged: 3 updates up to step 3 .*0\.01$"):
        tally.catch_up()
