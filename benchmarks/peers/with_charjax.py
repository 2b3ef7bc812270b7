"""charjax: the training loop's step and the sampler."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from benchmarks.peers.with_flax import about, device_bytes
from benchmarks.worker import Task
from benchmarks.workload import Shape, batch
from charjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from charjax.data.batches import Batch
from charjax.inference.options import Sampling
from charjax.inference.sampling.sampler import Sampler
from charjax.model.network import init_params
from charjax.runtime.keys import Stream, stream_key
from charjax.train.backends import make_backend
from charjax.train.intervals import STEPS_PER_DISPATCH
from charjax.train.optimizer import make_optimizer
from charjax.train.train_state import init_state


def model_config(shape: Shape, **fields: Any) -> ModelConfig:
    """The architecture of a shape."""
    return ModelConfig(
        cell=shape.cell, hidden=shape.hidden, layers=shape.layers, embed=shape.embed, **fields
    )


def train_step(shape: dict[str, Any], dtype: str, recurrence: str) -> Task:
    """One dispatch of the training loop per unit: `STEPS_PER_DISPATCH` steps, state donated."""
    wanted = Shape(**shape)
    config = Config(
        data=DataConfig(batch_size=wanted.batch, seq_len=wanted.length),
        model=model_config(wanted, dtype=dtype, recurrence=recurrence),
        optim=OptimConfig(name="adam", learning_rate=1e-3, clip_norm=1.0),
        train=TrainConfig(max_steps=1),
    )
    inputs, targets = batch(wanted, STEPS_PER_DISPATCH)
    mask, reset = np.ones(inputs.shape, bool), np.zeros(inputs.shape[:2], bool)
    return step_task(config, wanted.vocab, Batch(inputs, targets, mask, reset))


def step_task(config: Config, vocab: int, batches: Batch) -> Task:
    """The step of a config, repeated on the same stacked batches."""
    optimizer = make_optimizer(config.optim, config.train.max_steps)
    backend = make_backend(config, vocab, optimizer)
    state = backend.place(init_state(config, vocab, optimizer))
    parameters = about(state.params)

    def run(units: int) -> dict[str, Any]:
        nonlocal state
        for _ in range(units):
            state, metrics = backend.run(state, batches)
        return {"loss": float(metrics.loss[-1])}

    return Task(batches.inputs.size, run, parameters, device_bytes())


def sampler(shape: dict[str, Any], streams: int, chars: int, dtype: str = "float32") -> Task:
    """The sampler of `charjax sample`: continues one character by `chars`.

    It is made once, as the peers' models are.
    """
    wanted = Shape(**shape)
    params = init_params(model_config(wanted), wanted.vocab, stream_key(0, Stream.INIT))
    sampler = Sampler(model_config(wanted, dtype=dtype), params, masked=None)
    prompt = np.zeros(1, np.int32)

    def run(units: int) -> dict[str, Any]:
        for seed in range(units):
            groups = sampler(
                prompt, num_chars=chars, num_samples=streams, sampling=Sampling(seed=seed)
            )
            texts = [np.concatenate(list(group), axis=1) for group in groups]
        return {"last": int(texts[-1][-1, -1])}

    return Task(streams * chars, run, about(params), device_bytes())


def matmul(size: int, dtype: str) -> Task:
    """A square matmul with float32 results: the FLOP/s that the machine reaches.

    `chars` is its number of floating-point operations.
    """
    a, b = (jax.random.normal(jax.random.key(i), (size, size)).astype(dtype) for i in range(2))
    multiply = jax.jit(lambda a, b: jax.numpy.dot(a, b, preferred_element_type="float32"))

    def run(units: int) -> dict[str, Any]:
        for _ in range(units):
            out = multiply(a, b)
        out.block_until_ready()
        return {}

    return Task(2 * size**3, run, {}, device_bytes())
