from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax

from charjax.data.dataset import load_dataset
from charjax.train import compile_ahead, loop

from .tiny import outcome


def test_evaluation_and_sampling_compile_nothing_after_it(config, compiled, tmp_path, monkeypatch):
    """A number that is not 0: what ran ahead was a program of other shapes than the run does."""
    config = replace(config, model=replace(config.model, hidden=11))  # of no other test
    later = {"evaluating": 0}

    def start(config, params, dataset):
        zeros = compile_ahead.zeros_like(params)
        compile_ahead.evaluate_chunk(config, zeros, dataset)
        compile_ahead.sample_chunk(config, zeros, dataset)
        return lambda: None

    def counted(run, *args):
        before = compiled[0]
        result = run(*args)
        later["evaluating"] += compiled[0] - before
        return result

    monkeypatch.setattr(compile_ahead, "start", start)
    for name in ("_evaluate", "_sample"):
        monkeypatch.setattr(loop, name, partial(counted, getattr(loop, name)))
    loop.train(config, tmp_path / "with")
    assert later["evaluating"] == 0
    monkeypatch.undo()
    loop.train(config, tmp_path / "without")
    assert outcome(tmp_path / "with") == outcome(tmp_path / "without")


def test_a_failure_is_left_to_the_run(config, monkeypatch):
    """The thread must not print a traceback beside the run's own message."""

    def fail(*_: object) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(compile_ahead, "evaluate_chunk", fail)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    wait = compile_ahead.start(config, {}, load_dataset(config))
    wait()
