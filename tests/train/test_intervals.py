from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.config import Config, TrainConfig
from charjax.train.intervals import longest_dispatch, make_intervals, total_steps

from .tiny import configs_of_intervals

configs = configs_of_intervals(fewest=1)


@given(configs, st.integers(1, 500), st.integers(0, 300))
def test_a_dispatch_is_the_longest_that_divides_all_intervals(config, steps_per_epoch, start):
    intervals = make_intervals(config, steps_per_epoch, start)
    stops = start, intervals.total, intervals.log, intervals.evaluate
    common = math.gcd(*stops, intervals.checkpoint, intervals.sample)
    fitting = [n for n in range(1, config.steps_per_dispatch + 1) if common % n == 0]
    assert intervals.dispatch == max(fitting)


@given(configs, st.integers(1, 500))
def test_the_intervals_are_those_of_the_config_or_an_epoch(config, steps_per_epoch):
    intervals = make_intervals(config, steps_per_epoch)
    assert intervals.evaluate == (config.eval_every or steps_per_epoch)
    assert intervals.checkpoint == (config.checkpoint_every or intervals.evaluate)
    assert intervals.sample == (config.sample_every or intervals.evaluate)
    assert intervals.log == (config.log_every or intervals.evaluate)


@given(st.integers(0, 300), st.floats(0, 5), st.integers(1, 100))
def test_the_first_limit_ends_the_run(max_steps, max_epochs, steps_per_epoch):
    config = TrainConfig(max_steps=max_steps, max_epochs=max_epochs)
    total = total_steps(config, steps_per_epoch)
    assert make_intervals(config, steps_per_epoch).total == total
    epochs = Fraction(str(max_epochs))
    if not max_steps and not max_epochs:
        assert total == 0
    else:
        assert total <= (max_steps or math.inf)
        assert not max_epochs or total - 1 < epochs * steps_per_epoch  # one step before the end
        assert total == max_steps or total >= epochs * steps_per_epoch


@pytest.mark.parametrize(("epochs", "steps"), [(1.1, 110), (0.07, 7), (2.2, 220), (1.101, 111)])
def test_a_decimal_fraction_of_epochs_has_no_step_too_many(epochs, steps):
    assert total_steps(TrainConfig(max_epochs=epochs), 100) == steps


@pytest.mark.parametrize(
    ("asked", "parameters", "longest"),
    [
        (10, 10**9, 10),  # the default stays
        (3, 10**9, 3),
        (2_000_000_000, 3000, 1000),
        (2_000_000_000, 10**6, 162),
        (20, 10**9, 10),
        (0, 3000, 10),
    ],
)
def test_a_dispatch_is_bounded_by_its_work(asked, parameters, longest):
    config = Config(train=TrainConfig(max_minutes=1.0, steps_per_dispatch=asked))
    assert longest_dispatch(config, parameters) == longest
    intervals = make_intervals(
        TrainConfig(steps_per_dispatch=asked, log_every=2**30), 2**30, longest=longest
    )
    assert intervals.dispatch <= longest


@pytest.mark.parametrize(
    ("asked", "parameters", "longest"), [(0, 10**6, 50), (0, 10**9, 10), (7, 10**6, 7)]
)
def test_devices_that_slice_their_own_batches_run_longer_dispatches(asked, parameters, longest):
    config = Config(train=TrainConfig(max_minutes=1.0, steps_per_dispatch=asked))
    assert longest_dispatch(config, parameters, slices=True) == longest
