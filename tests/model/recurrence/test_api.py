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


@pytest.mark.parametrize(
    ("requested", "saved", "platform", "refusing", "chosen"),
    [
        ("fast", "", "cpu", {}, ("c", "the fastest here")),
        ("fast", "", "cpu", {"c": "no cc"}, ("xla", "c refuses: no cc")),
        ("fast", "", "gpu", {}, ("persistent", "the fastest here")),
        ("fast", "", "gpu", {"persistent": "old"}, ("xla", "persistent refuses: old")),
        ("fast", "", "tpu", {}, ("xla", "the fastest here")),
        ("fast", "xla", "cpu", {}, ("xla", "as the saved run")),
        ("fast", "xla", "cpu", {"xla": "old"}, ("c", "xla refuses: old")),
        ("fast", "new", "cpu", {}, ("c", "new refuses: this version has no such implementation")),
        *((name, "xla", "cpu", {}, (name, "as the config says")) for name in api._MODULES),
    ],
)
def test_the_choice_and_its_reason(
    requested, saved, platform, refusing, chosen, refusals, monkeypatch
):
    """What another run used is no reason to run something else than the config names."""
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    refusals |= refusing
    assert resolve(ModelConfig(recurrence=requested), BATCH, saved=saved) == chosen


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


@pytest.mark.parametrize(
    ("cell", "runs", "reasons"),
    [
        ("mingru", "parallel", {"c": "no cell mingru", "xla": "has no recurrent kernel"}),
        ("minlstm", "parallel", {"c": "no cell minlstm", "xla": "has no recurrent kernel"}),
        ("mogrifier", "scan", {"xla": "gates its input", "parallel": "has a recurrent kernel"}),
    ],
)
def test_cells_that_few_implementations_run(cell, runs, reasons):
    model = ModelConfig(cell=cell, hidden=4)
    assert resolve(model, BATCH) == (runs, "the fastest here")
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=rf"recurrence={name}: .*cell[ =]{cell}\b") as error:
            resolve(replace(model, recurrence=name), BATCH)
        assert reason in str(error.value)


@pytest.mark.parametrize("name", ["xla", "scan"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_portable_implementations_support_every_layer(name, dtype):
    model = ModelConfig(cell="rnn", hidden=1, dtype=dtype, recurrence=name)
    assert resolve(model, 1).implementation == name
