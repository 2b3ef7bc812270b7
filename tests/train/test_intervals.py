from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from charjax.config import TrainConfig
from charjax.train.intervals import make_intervals

from .tiny import configs_of_intervals

configs = configs_of_intervals(fewest=1)


@given(configs, st.integers(1, 500))
def test_a_dispatch_is_the_longest_that_ends_wherever_something_is_due(config, steps_per_epoch):
    plan = make_intervals(config, steps_per_epoch)
    stops = [n for n in (plan.total, *plan.intervals) if n]
    fitting = [
        n for n in range(1, config.steps_per_dispatch + 1) if all(stop % n == 0 for stop in stops)
    ]
    assert plan.dispatch == max(fitting)


@given(configs, st.integers(1, 500))
def test_the_intervals_are_those_of_the_config_or_an_epoch(config, steps_per_epoch):
    plan = make_intervals(config, steps_per_epoch)
    assert plan.evaluate == (config.eval_every or steps_per_epoch)
    assert plan.checkpoint == (config.checkpoint_every or plan.evaluate)
    assert plan.sample == (config.sample_every or plan.evaluate)
    assert plan.log == (config.log_every or plan.evaluate)
    assert set(plan.intervals) == {plan.log, plan.evaluate, plan.checkpoint, plan.sample}


@given(st.integers(0, 300), st.floats(0, 5), st.integers(1, 100))
def test_the_first_limit_ends_the_run(max_steps, max_epochs, steps_per_epoch):
    total = make_intervals(
        TrainConfig(max_steps=max_steps, max_epochs=max_epochs), steps_per_epoch
    ).total
    epochs_done = (total - 1) / steps_per_epoch  # one step before the end
    if not max_steps and not max_epochs:
        assert total == 0
    else:
        assert total <= (max_steps or math.inf)
        assert not max_epochs or epochs_done < max_epochs
        assert total == max_steps or total >= max_epochs * steps_per_epoch


def test_golden_plan():
    plan = make_intervals(TrainConfig(max_epochs=1.5, log_every=6, steps_per_dispatch=5), 12)
    assert (plan.total, plan.evaluate, plan.checkpoint, plan.sample) == (18, 12, 12, 12)
    assert plan.dispatch == 3
