"""Tiny runs, and what their workdirs hold."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

from charjax.checkpoint.checkpoints import Checkpoints
from charjax.config import Config, DataConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig
from charjax.data.batches import Batch
from charjax.runtime.display import PlainDisplay
from charjax.train.metrics import read_metrics
from charjax.train.optimizer import make_optimizer
from charjax.train.step import Step, make_step
from charjax.train.train_state import TrainState, init_state
from charjax.workdir import Workdir

VOCAB = 12
TIMES = ("time_s", "chars_per_second", "flops_per_second", "input_stall")  # keys of a record
BATCH, LENGTH = 8, 8
_BASE = Config(
    data=DataConfig(batch_size=BATCH, seq_len=LENGTH),
    model=ModelConfig(hidden=8, embed=4),
    optim=OptimConfig(learning_rate=1e-2),
    train=TrainConfig(max_steps=40, eval_every=20, log_every=10, steps_per_dispatch=5),
    sample=SampleConfig(num_chars=8, temperatures=(0.5,)),
)


def config_of(**sections: dict[str, Any]) -> Config:
    """A run of 40 steps of 8 sequences, with fields changed: `config_of(model={"hidden": 16})`."""
    changed = {name: replace(getattr(_BASE, name), **new) for name, new in sections.items()}
    return replace(_BASE, **changed)


def text_of(num_words: int) -> str:
    """Words in a random order, always the same."""
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "some", "tea"]
    return " ".join(draw.choice(words) for _ in range(num_words))


def stacked(batches: Callable[[int], Batch], steps: range) -> Batch:
    """The batches of these steps along a new leading axis."""
    return Batch(*map(np.stack, zip(*map(batches, steps), strict=True)))


def random_batch(step: int) -> Batch:
    """A batch of random tokens; the carry is reset at step 0 only."""
    tokens = np.random.default_rng(step).integers(VOCAB, size=(BATCH, LENGTH + 1), dtype=np.int32)
    mask, reset = np.ones((BATCH, LENGTH), bool), np.full(BATCH, step == 0)
    return Batch(tokens[:, :-1], tokens[:, 1:], mask, reset)


@functools.cache
def first_state(config: Config) -> TrainState:
    """The state of a run before its first step."""
    return init_state(config, VOCAB, make_optimizer(config.optim, config.train.max_steps))


@functools.cache
def step_of(config: Config, boundary_id: int | None = None) -> Step:
    """The training step of a config."""
    optimizer = make_optimizer(config.optim, config.train.max_steps)
    return make_step(config, VOCAB, optimizer, boundary_id=boundary_id)


@functools.cache
def jitted(config: Config, boundary_id: int | None = None) -> Step:
    """The same, compiled once for all tests of a config."""
    return jax.jit(step_of(config, boundary_id))


def assert_same_bits(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_close(one: Any, other: Any, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


class Recorder(PlainDisplay):
    """A display that records all it is given, and calls `listen(kind, what)` for each of it."""

    def __init__(self, listen: Callable[[str, Any], None] = lambda kind, what: None) -> None:
        self.lines: list[str] = []
        self.texts: list[str] = []
        self._listen = listen

    def report(self, message: str) -> None:
        self.lines.append(message)
        self._listen("report", message)

    def text(self, text: str) -> None:
        self.texts.append(text)
        self._listen("text", text)

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[..., None]]:
        yield lambda done, *rest: self._listen(name, done)


def outcome(folder: Path) -> tuple[list[dict[str, Any]], bytes, int, dict[str, Any]]:
    """What interruptions must not change: records without times, samples, last step, digests."""
    run = Workdir(folder)
    timeless = [
        {k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(run.metrics)
    ]
    last = newest(folder)
    return timeless, run.samples.read_bytes(), last.step, last.leaves


def newest(folder: Path) -> Any:
    """The record of a run's newest checkpoint."""
    with Checkpoints(folder / "checkpoints") as saved:
        return saved.read_meta()


def configs_of_intervals(fewest: int) -> st.SearchStrategy[TrainConfig]:
    """Any intervals, with at least `fewest` steps allowed in a dispatch."""
    intervals = st.integers(0, 300)
    return st.builds(
        TrainConfig,
        max_steps=intervals,
        eval_every=intervals,
        checkpoint_every=intervals,
        sample_every=intervals,
        log_every=intervals,
        steps_per_dispatch=st.integers(fewest, 40),
    )


def at_step(step: int) -> Callable[[str, Any], bool]:
    """The condition that a display shows this training step."""
    return lambda kind, what: kind == "training" and what == step


def stop_when(number: int, condition: Callable[[str, Any], bool]) -> Callable[[str, Any], None]:
    """Sends this process a signal, once, when the condition holds."""
    sent = []

    def listen(kind: str, what: Any) -> None:
        if not sent and condition(kind, what):
            sent.append(number)
            os.kill(os.getpid(), number)

    return listen
