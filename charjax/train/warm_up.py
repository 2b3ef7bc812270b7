"""Measures the speed of a config on this machine, by a few steps whose results are discarded."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import jax

from charjax.config import Config
from charjax.data.dataset import load_dataset
from charjax.inference.scoring.evaluate import validate
from charjax.runtime.dtypes import resolve_dtype
from charjax.train.backends import make_backend
from charjax.train.intervals import STEPS_PER_DISPATCH
from charjax.train.optimizer import make_optimizer, make_schedule
from charjax.train.sizing import Speed
from charjax.train.step import StepMetrics
from charjax.train.train_state import init_state

_MIN_S = 10.0  # seconds of training to time: a machine with other work changes its speed
_TOTAL_STEPS = 1000  # of the schedule; the speed does not depend on it


def measure_speed(config: Config) -> Speed:
    """Seconds of a training step, of compiling it, and of an evaluation: about 0 without one."""
    dataset, config = load_dataset(config), resolve_dtype(config)
    vocab_size, boundary = len(dataset.vocab), dataset.vocab.boundary_id
    schedule = make_schedule(config.optim, _TOTAL_STEPS)
    optimizer = make_optimizer(config.optim, _TOTAL_STEPS)
    backend = make_backend(config, vocab_size, optimizer, schedule, boundary_id=boundary)
    state = backend.place(init_state(config, vocab_size, optimizer))
    dispatches = itertools.count(step=STEPS_PER_DISPATCH)

    def dispatch() -> StepMetrics:
        nonlocal state
        start = next(dispatches)
        inputs = backend.inputs(dataset.batches, range(start, start + STEPS_PER_DISPATCH))
        state, metrics = backend.run(state, inputs)
        return metrics

    first_s, dispatch_s = _time_dispatches(dispatch)

    def evaluate() -> float:
        started = time.monotonic()
        validate(config, state.eval_params, dataset)
        return time.monotonic() - started

    evaluate()  # the first call compiles
    compile_s = max(0.0, first_s - dispatch_s)
    return Speed(dispatch_s / STEPS_PER_DISPATCH, compile_s, evaluate())


def _time_dispatches(dispatch: Callable[[], StepMetrics]) -> tuple[float, float]:
    """Seconds of the first dispatch, which compiles, and the mean of those after it."""
    started = time.monotonic()
    jax.block_until_ready(dispatch())
    compiled = now = time.monotonic()
    running, ended = dispatch(), 0
    while now < compiled + _MIN_S:
        # As the training loop does, which waits for a dispatch when it has sent the next one.
        running, waited_for = dispatch(), running
        jax.block_until_ready(waited_for)
        ended, now = ended + 1, time.monotonic()
    jax.block_until_ready(running)
    return compiled - started, (now - compiled) / ended
