"""What a person is told fits what is known."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.config import TrainConfig
from charjax.train import words
from charjax.train.plan import make_plan

from .tiny import config_of, configs_of_intervals

configs = configs_of_intervals(fewest=2)


@pytest.mark.parametrize(
    ("fields", "longer", "said"),
    [
        ({"schedule": "constant"}, 200, ""),
        ({"schedule": "linear"}, 100, ""),
        (
            {"schedule": "linear", "learning_rate": 0.4},
            200,
            "plan: optim.schedule=linear is over 200 steps instead of 100: "
            "the learning rate goes on at 0.2 instead of 0",
        ),
    ],
)
def test_another_length_that_changes_the_learning_rate_is_said(fields, longer, said):
    before = config_of(train={"max_steps": 100}, optim=fields)
    now = config_of(train={"max_steps": longer}, optim=fields)
    assert "".join(words.rescheduled(before, now, 50, 100)) == said


def test_an_evaluation_says_what_it_has():
    record = {"step": 1200, "epoch": 1.5, "chars_per_second": 2000.0, "train_loss": 1.25}
    without = words.evaluation(record, better=False)
    assert "train 1.2500" in without
    assert "val" not in without
    both = words.evaluation(record | {"val_loss": 1.5, "val_bpc": 2.164}, better=True)
    assert "val 1.5000 nats (2.1640 bits)" in both
    assert both.endswith("best")


def dispatch(config, steps_per_epoch, start=0):
    return words.dispatch(config, make_plan(config, steps_per_epoch, start), start)


@pytest.mark.parametrize(
    ("fields", "start", "said"),
    [
        (
            {"max_steps": 4500},
            0,
            "instead of 10, of which train.eval_every=1117 is no multiple; "
            "try --config.train.eval_every=1110",
        ),
        (
            {"max_epochs": 1.0},
            0,
            "instead of 10, of which train.max_steps=1117 and train.eval_every=1117 are no "
            "multiples; try --config.train.max_steps=1110 --config.train.eval_every=1110",
        ),
        (
            {"max_steps": 4500, "eval_every": 500, "log_every": 1},
            0,
            "instead of 10, of which train.log_every=1 is no multiple; "
            "try --config.train.log_every=10",
        ),
        (
            {"max_steps": 4500, "log_every": 35},
            0,
            "instead of 5, of which train.eval_every=1117 is no multiple; "
            "try --config.train.eval_every=1115",
        ),
        (
            {"max_steps": 4500, "eval_every": 500},
            1117,
            "instead of 10, of which step 1,117, where it goes on, is no multiple",
        ),
    ],
)
def test_a_dispatch_of_one_step_is_explained(fields, start, said):
    assert dispatch(TrainConfig(**fields), 1117, start) == [f"plan: 1 step a dispatch {said}"]


@given(configs, st.integers(1, 500))
def test_and_the_remedy_cures_it(config, steps_per_epoch):
    plan, lines = make_plan(config, steps_per_epoch), dispatch(config, steps_per_epoch)
    assert len(lines) == (plan.dispatch == 1 != plan.total)
    for line in lines:
        flags = dict(re.findall(r"--config\.train\.(\w+)=(\d+)", line))
        cured = replace(config, **{name: int(value) for name, value in flags.items()})
        assert make_plan(cured, steps_per_epoch).dispatch > 1
        assert dispatch(cured, steps_per_epoch) == []


def test_one_step_a_dispatch_is_not_explained_to_who_asked_for_it():
    assert dispatch(TrainConfig(max_steps=4500, steps_per_dispatch=1), 1117) == []
