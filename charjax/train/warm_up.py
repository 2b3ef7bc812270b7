"""Measures the speed of a config on this machine, by a few steps whose results are discarded."""

from __future__ import annotations

import itertools
import statistics
import time

import jax

from charjax.config import Config
from charjax.data.dataset import load_dataset
from charjax.inference.evaluate import max_eval_chars, score
from charjax.runtime.dtypes import resolve_dtype
from charjax.train.backends import make_backend
from charjax.train.choice import Speed
from charjax.train.intervals import STEPS_PER_DISPATCH
from charjax.train.optimizer import make_optimizer, make_schedule
from charjax.train.step import init_state

_MIN_S = 6.0  # seconds of training to time: the first one or two are often slower


def measure_speed(config: Config) -> Speed:
    """Seconds of a training step, of compiling it, and of an evaluation (0 if there is none)."""
    dataset, config = load_dataset(config), resolve_dtype(config)
    vocab_size, boundary, total = len(dataset.vocab), dataset.vocab.boundary_id, 1000
    optimizer, schedule = make_optimizer(config.optim, total), make_schedule(config.optim, total)
    backend = make_backend(config, vocab_size, optimizer, schedule, boundary_id=boundary)
    state = backend.place(init_state(config, vocab_size, optimizer))
    stacked = backend.inputs(dataset.batches, range(STEPS_PER_DISPATCH))

    started = time.monotonic()
    state, _ = jax.block_until_ready(backend.run(state, stacked))
    ends = [compiled := time.monotonic()]
    while ends[-1] < compiled + _MIN_S:
        state, _ = jax.block_until_ready(backend.run(state, stacked))
        ends.append(time.monotonic())
    dispatches = [end - start for start, end in itertools.pairwise(ends)]
    step_s = statistics.median(dispatches) / STEPS_PER_DISPATCH

    def evaluate() -> float:
        if dataset.splits.val.ids.size < 2:  # a run does not evaluate then
            return 0.0
        started = time.monotonic()
        score(
            config.model,
            state.eval_params,
            dataset.splits.val.ids,
            boundary_id=boundary,
            max_chars=max_eval_chars(config.data),
        )
        return time.monotonic() - started

    evaluate()  # the first call compiles
    compile_s = max(0.0, compiled - started - STEPS_PER_DISPATCH * step_s)
    return Speed(step_s, compile_s, evaluate())
