"""`resolve` chooses the implementation: its order, its refusals and the reasons it gives."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

from charjax.config import ModelConfig
from charjax.errors import InputError
from charjax.model.recurrence import api
from charjax.model.recurrence.api import Resolution, for_inference, resolve
from charjax.model.recurrence.base import Layer

BATCH = 3


@pytest.fixture
def refusals(monkeypatch):
    """What each implementation answers when asked whether it supports a layer; "": it does."""
    answers = dict.fromkeys(api._MODULES, "")
    modules = {
        name: SimpleNamespace(supports=lambda layer, name=name: answers[name]) for name in answers
    }
    monkeypatch.setattr(api, "_implementation", modules.get)
    return answers


def test_fast_is_the_first_that_supports_the_layer(refusals):
    model = ModelConfig(recurrence="fast")
    assert resolve(model, BATCH) == Resolution("c", "the fastest here")
    refusals["c"] = "no C compiler"
    assert resolve(model, BATCH) == Resolution("xla", "c refuses: no C compiler")


@pytest.mark.parametrize(("platform", "name"), [("gpu", "persistent"), ("tpu", "xla")])
def test_fast_asks_only_what_the_platform_can_run(platform, name, refusals, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert resolve(ModelConfig(), BATCH) == Resolution(name, "the fastest here")
    refusals["persistent"] = "no Hopper GPU"
    assert resolve(ModelConfig(), BATCH).implementation == "xla"


@pytest.mark.parametrize("name", api._MODULES)
def test_a_named_implementation_is_the_one_that_runs(refusals, name):
    model = ModelConfig(recurrence=name)
    assert resolve(model, BATCH) == Resolution(name, "as the config says")
    # What another run used is no reason to run something else than the config names.
    assert resolve(model, BATCH, saved="xla").implementation == name


def test_a_named_implementation_that_refuses_is_an_error_with_a_remedy(refusals):
    refusals["persistent"] = "no Hopper GPU"
    with pytest.raises(InputError) as error:
        resolve(ModelConfig(recurrence="persistent"), BATCH)
    assert str(error.value) == (
        "config.model.recurrence=persistent: no Hopper GPU; take --config.model.recurrence=fast"
    )


def test_unless_strict_a_named_implementation_that_refuses_is_passed_over(refusals):
    refusals |= {"persistent": "no Hopper GPU", "c": "no C compiler"}
    chosen = resolve(ModelConfig(recurrence="persistent"), BATCH, strict=False)
    reason = "persistent refuses: no Hopper GPU; c refuses: no C compiler"
    assert chosen == Resolution("xla", reason)


def test_fast_passes_over_a_saved_implementation_that_this_version_lacks(refusals):
    resolution = resolve(ModelConfig(recurrence="fast"), BATCH, saved="later")
    assert resolution == Resolution("c", "later refuses: this version has no such implementation")


def test_fast_keeps_the_saved_implementation_where_it_runs(refusals):
    model = ModelConfig(recurrence="fast")
    assert resolve(model, BATCH, saved="xla") == Resolution("xla", "as the saved run")
    refusals["persistent"] = "no Hopper GPU"
    assert resolve(model, BATCH, saved="persistent") == Resolution(
        "c", "persistent refuses: no Hopper GPU"
    )


def test_inference_runs_what_the_model_was_trained_with_or_else_what_fast_is(refusals):
    model = ModelConfig(recurrence="persistent")
    assert for_inference(model, BATCH) == model
    refusals["persistent"] = "no Hopper GPU"
    assert for_inference(model, BATCH) == ModelConfig(recurrence="c")


def test_an_implementation_is_asked_about_the_layer(monkeypatch):
    asked = []
    module = SimpleNamespace(supports=lambda layer: asked.append(layer) or "")
    monkeypatch.setattr(api, "_implementation", lambda name: module)
    resolve(ModelConfig(cell="lstm", hidden=9, dtype="bfloat16"), BATCH)
    assert asked == [Layer("lstm", 9, "bfloat16", BATCH)]


@pytest.mark.parametrize("cell", ["mingru", "minlstm"])
def test_cells_without_a_recurrent_kernel_run_in_parallel_and_others_refuse_them(cell):
    model = ModelConfig(cell=cell, hidden=4)
    assert resolve(model, BATCH).implementation == "parallel"
    for name in ("c", "xla"):
        with pytest.raises(InputError, match=rf"recurrence={name}: .*cell[ =]{cell}"):
            resolve(replace(model, recurrence=name), BATCH)
    with pytest.raises(InputError, match=r"recurrence=parallel: .*cell=gru has a recurrent kernel"):
        resolve(ModelConfig(recurrence="parallel"), BATCH)


def test_scan_alone_runs_a_mogrifier_and_others_refuse_it():
    model = ModelConfig(cell="mogrifier", hidden=4)
    assert resolve(model, BATCH) == ("scan", "the fastest here")
    reasons = {"c": "no cell mogrifier", "xla": "gates its input", "parallel": "a recurrent kernel"}
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=rf"recurrence={name}: .*mogrifier") as error:
            resolve(replace(model, recurrence=name), BATCH)
        assert reason in str(error.value)


@pytest.mark.parametrize("name", ["xla", "scan"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_portable_implementations_support_every_layer(name, dtype):
    model = ModelConfig(cell="rnn", hidden=1, dtype=dtype, recurrence=name)
    assert resolve(model, 1).implementation == name
