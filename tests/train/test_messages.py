"""What a run says about the machine's part in it, and about intervals that slow it down."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.checkpoint.meta import CorpusMeta, Platform, RunMeta
from charjax.config import DataConfig, TrainConfig
from charjax.data.reading.rules import ReadingRules
from charjax.data.vocab import Vocab
from charjax.model.recurrence.resolution import Resolution
from charjax.train import messages
from charjax.train.intervals import make_intervals
from charjax.workdir import Workdir

from .tiny import config_of, configs_of_intervals

META = RunMeta(
    config=config_of(),
    vocab=Vocab(("a", "b"), "codepoint", False),
    corpus=CorpusMeta("tea", "0" * 64, 1200, ""),
    reading=ReadingRules.from_config(DataConfig()),
    parameters=3456,
    platform=Platform({}, "cpu", 8),
    recurrence=Resolution("xla", "c refuses: no C compiler (cc)"),
)


def test_the_first_lines_name_text_model_devices_and_implementation():
    assert list(messages.what_is_trained(META, 32)) == [
        "text: tea, 1,200 characters, vocabulary of 2",
        "model: gru 1 x 8, 3,456 parameters, float32 matmuls, on 8 x cpu",
        "recurrence: xla (c refuses: no C compiler (cc))",
        "steps: 40, 32 per epoch",
    ]


def test_the_next_command_needs_no_current_folder(monkeypatch, tmp_path):
    """It may have been removed while the run trained."""

    def fail(*args: object) -> Path:
        raise FileNotFoundError

    workdir = Workdir(tmp_path)
    monkeypatch.setattr(Path, "cwd", fail)
    assert shlex.split(messages.next_command(META, workdir))[1] == sys.executable


@pytest.mark.parametrize(
    ("intervals", "named"),
    [
        ({"eval_every": 33, "max_steps": 66}, "train.max_steps=66, train.eval_every=33"),
        ({"eval_every": 20, "max_steps": 41}, "train.max_steps=41"),
    ],
)
def test_intervals_that_force_one_step_per_dispatch_are_named(intervals, named):
    config = TrainConfig(**{"log_every": 10, "steps_per_dispatch": 5, **intervals})
    (line,) = messages.dispatches(config, make_intervals(config, 1000), 0, 5)
    assert line.endswith(f"not multiples of it: {named}")
    assert "train.steps_per_dispatch=5" in line


def test_the_step_to_resume_from_can_force_single_steps_too():
    config = TrainConfig(max_steps=60, eval_every=20, log_every=10, steps_per_dispatch=5)
    assert not list(messages.dispatches(config, make_intervals(config, 1000, 40), 40, 5))
    (line,) = messages.dispatches(config, make_intervals(config, 1000, 41), 41, 5)
    assert line.endswith("not multiples of it: the step to resume from=41")


@given(configs_of_intervals(fewest=2), st.integers(1, 500), st.integers(0, 300))
def test_single_steps_are_explained_wherever_more_were_asked_for(config, steps_per_epoch, start):
    intervals = make_intervals(config, steps_per_epoch, start)
    lines = list(messages.dispatches(config, intervals, start, 40))
    assert len(lines) == (intervals.dispatch == 1 and intervals.total != 1)


def test_a_longer_run_with_a_schedule_says_so():
    longer = replace(META, config=config_of(train={"max_steps": 80}))
    assert not list(messages.rescheduled(META, longer, 32))  # its learning rate is constant
    optim = {"schedule": "cosine"}
    before, now = (
        replace(META, config=config_of(train={"max_steps": steps}, optim=optim))
        for steps in (40, 80)
    )
    (line,) = messages.rescheduled(before, now, 32)
    assert line == "optim.schedule=cosine is now over 80 steps instead of 40"
    assert not list(messages.rescheduled(now, now, 32))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"max_steps": 1500, "max_epochs": 300.0},
            "train.max_steps=1,500 (15 epochs) comes before train.max_epochs=300 (30,000 steps)",
        ),
        (
            {"max_steps": 1500, "max_epochs": 2.5},
            "train.max_epochs=2.5 (250 steps) comes before train.max_steps=1,500 (15 epochs)",
        ),
        (
            {"max_steps": 1_000_000, "max_epochs": 0.01},
            "train.max_epochs=0.01 (1 step) comes before train.max_steps=1,000,000 (10,000 epochs)",
        ),
        (
            {"max_steps": 100, "patience": 1},
            "train.patience=1 has no effect: the run ends after 1 evaluation, at step 100",
        ),
        (
            {"max_steps": 1500, "patience": 15},
            "train.patience=15 has no effect: the run ends after 15 evaluations, at step 1,500",
        ),
        ({"max_steps": 1500, "patience": 14}, ""),
        ({"max_steps": 1500, "max_epochs": 15.0, "max_minutes": 1.0}, ""),
        ({"max_minutes": 1.0, "patience": 3}, ""),
    ],
)
def test_a_limit_that_another_hides_is_named(fields, said):
    lines = list(messages.limits_without_effect(TrainConfig(**fields), 100))
    assert len(lines) == bool(said)
    assert all(said in line for line in lines)


def test_a_dispatch_that_would_take_too_long_is_said_to_be_shorter():
    config = TrainConfig(
        max_steps=10**6, log_every=10**5, eval_every=10**5, steps_per_dispatch=10**9
    )
    (line,) = messages.dispatches(config, make_intervals(config, 100), 0, 1000)
    assert "at most 1,000 steps instead of train.steps_per_dispatch=1,000,000,000" in line


def test_a_part_of_the_validation_split_is_said_to_be_one():
    assert not list(messages.validation(100, 101))
    assert not list(messages.validation(100, 0))  # as the config says
    assert list(messages.validation(100, 1)) == [
        "validation: none: the split has one character, which nothing precedes"
    ]
    (line,) = messages.validation(100, 102)
    assert "100 of the 102 characters" in line
    assert "config.data.eval_chars" in line
