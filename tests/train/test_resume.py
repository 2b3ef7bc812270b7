"""The metadata of a run, and what of it a resumed run keeps."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from charjax.checkpoint.meta import CheckpointMeta, RunMeta
from charjax.checkpoint.progress import ExactMean, Progress
from charjax.checkpoint.record import Record
from charjax.config import ModelConfig, OptimConfig
from charjax.data.dataset import load_dataset
from charjax.errors import InputError
from charjax.model.recurrence import api
from charjax.model.recurrence.resolution import Resolution
from charjax.train.resume import check_same_run, resolve_recurrence
from charjax.train.run import describe

from .tiny import config_of

LOG_SIZES = {"metrics.jsonl": 7, "samples.txt": 0}


@pytest.fixture(scope="module")
def meta(text_file) -> RunMeta:
    config = config_of(data={"path": str(text_file)})
    return describe(config, load_dataset(config), 123, Resolution("c", "the fastest here"))


def test_metadata_survives_json(meta):
    saved = CheckpointMeta(meta, Progress(elapsed_s=3.0, losses=ExactMean.of([1.5])), LOG_SIZES)
    values = json.loads(json.dumps(saved.to_json(), allow_nan=False))
    assert CheckpointMeta.of(Record(1, None, values, {}), Path("it")) == saved
    assert values["recurrence"] == {"implementation": "c", "reason": "the fastest here"}
    assert values.keys() == {
        *("config", "vocabulary", "corpus", "parameters", "versions", "device", "devices"),
        *("reading", "recurrence", "progress", "logs"),
    }


def test_a_run_from_before_the_recurrence_was_recorded_is_read(meta):
    values = meta.to_json()
    del values["recurrence"]
    old = RunMeta.from_json(values)
    assert old == replace(meta, recurrence=None)
    assert old.resolved_config == old.config


def test_the_saved_config_says_what_was_asked_for_and_the_resolved_one_what_runs(meta):
    assert meta.config.model.recurrence == "fast"
    assert meta.to_json()["config"]["model"]["recurrence"] == "fast"
    assert meta.resolved_config.model == replace(meta.config.model, recurrence="c")


def test_an_old_run_of_windows_keeps_its_order_or_is_refused(text_file, monkeypatch):
    config = config_of(data={"path": str(text_file), "batching": "windows"})
    now = describe(config, load_dataset(config), 123, None)
    values = json.loads(json.dumps(now.to_json()))
    del values["config"]["data"]["window_order"]
    old = RunMeta.from_json(values)
    assert check_same_run(text_file, old, now, allow=[], fits=True) == []
    monkeypatch.setattr("charjax.data.shuffle.MAX_TABLE", 2)
    now = describe(config, load_dataset(config), 123, None)
    with pytest.raises(InputError, match=r"window_order was 'table', now 'keyed'"):
        check_same_run(text_file, old, now, allow=[], fits=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("softmax_temperature", 0.9), ("scheduled_sampling", 0.5), ("init_from", "builtin")],
)
def test_a_resumed_run_keeps_its_loss_and_its_first_weights(meta, field, value):
    train = replace(meta.config.train, **{field: value})
    now = replace(meta, config=replace(meta.config, train=train))
    with pytest.raises(InputError, match=rf"config\.train\.{field} was .*, now {value!r}"):
        check_same_run(Path("run"), meta, now, allow=[], fits=True)


@pytest.mark.parametrize(("name", "may_change"), [("adamw", True), ("schedule_free", False)])
def test_the_weights_of_schedule_free_learning_keep_the_b1_that_made_them(meta, name, may_change):
    saved, now = (
        replace(meta, config=replace(meta.config, optim=OptimConfig(name=name, b1=b1)))
        for b1 in (0.9, 0.5)
    )
    refused = pytest.raises(InputError, match=r"b1 was 0\.9, now 0\.5; .* do not fit")
    with contextlib.nullcontext() if may_change else refused:
        check_same_run(Path("run"), saved, now, allow=["config.optim.b1"], fits=True)


def test_a_resumed_run_may_keep_more_checkpoints(meta):
    now = replace(meta, config=replace(meta.config, train=replace(meta.config.train, keep=7)))
    assert check_same_run(Path("run"), meta, now, allow=[], fits=True) == []


@pytest.fixture
def refusing(monkeypatch) -> set[str]:
    """The implementations that support nothing here; the others support everything."""
    names: set[str] = set()

    def implementation(name: str) -> SimpleNamespace:
        return SimpleNamespace(supports=lambda layer: "not here" if name in names else "")

    monkeypatch.setattr(api, "_implementation", implementation)
    return names


def resolved(asked: str, saved: RunMeta | None, caplog) -> tuple[str, list[str]]:
    """(implementation, warnings) of a run that asks for an implementation."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "charjax"):
        resolution = resolve_recurrence(ModelConfig(recurrence=asked), 8, saved)
    return resolution.implementation, caplog.messages


def saved_with(meta: RunMeta, asked: str, implementation: str) -> RunMeta:
    model = replace(meta.config.model, recurrence=asked)
    config = replace(meta.config, model=model)
    return replace(meta, config=config, recurrence=Resolution(implementation, "because"))


def test_a_resumed_run_keeps_the_implementation_that_it_was_saved_with(meta, refusing, caplog):
    assert resolved("fast", None, caplog) == ("c", [])
    assert resolved("fast", replace(meta, recurrence=None), caplog) == ("c", [])
    assert resolved("fast", saved_with(meta, "fast", "xla"), caplog) == ("xla", [])
    assert resolved("scan", saved_with(meta, "fast", "xla"), caplog) == ("scan", [])
    # What the config named is not kept when it no longer does.
    assert resolved("fast", saved_with(meta, "scan", "scan"), caplog) == ("c", [])


def test_an_implementation_that_does_not_run_here_is_replaced_with_a_warning(
    meta, refusing, caplog
):
    refusing.add("c")
    implementation, (warning,) = resolved("fast", saved_with(meta, "fast", "c"), caplog)
    assert implementation == "xla"
    assert "was saved with c and goes on with xla" in warning
    assert "not here" in warning
    with pytest.raises(InputError, match=r"config\.model\.recurrence=c: not here"):
        resolved("c", saved_with(meta, "fast", "c"), caplog)
