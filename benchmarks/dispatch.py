"""What a dispatch costs: microseconds a step of a model too small to matter, as JSON lines.

python -m benchmarks.dispatch
"""

from __future__ import annotations

import json
import time
from dataclasses import replace

import jax
import numpy as np

from charjax.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from charjax.data.batches import Batch
from charjax.train.backends import make_backend
from charjax.train.optimizer import make_optimizer
from charjax.train.step import init_state

VOCAB, DISPATCHES, ROUNDS = 8, 50, 20
CONFIG = Config(
    data=DataConfig(batch_size=8, seq_len=2),
    model=ModelConfig(hidden=8, embed=4),
    train=TrainConfig(max_steps=1),
)


def step_us(backend_name: str, steps: int) -> float:
    """Least over rounds of the time a step, dispatches queued as the loop queues them."""
    config = replace(CONFIG, parallel=ParallelConfig(backend=backend_name))
    optimizer = make_optimizer(config.optim, 1)
    backend = make_backend(config, VOCAB, optimizer)
    shape = (steps, config.data.batch_size, config.data.seq_len)
    ids = np.zeros(shape, np.int32)
    batches = Batch(ids, ids, np.ones(shape, bool), np.zeros(shape[:2], bool))
    state = backend.place(init_state(config, VOCAB, optimizer))
    seconds = []
    for _ in range(ROUNDS):
        began, before = time.perf_counter(), None
        for _ in range(DISPATCHES):
            state, metrics = backend.run(state, batches)
            if before is not None:
                np.asarray(before.loss)
            before = metrics
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - began)
    return 1e6 * min(seconds[1:]) / (DISPATCHES * steps)


def main() -> None:
    """Both backends, one step a dispatch and ten."""
    for backend in ("jit", "pmap"):
        for steps in (1, 10):
            row = {"devices": jax.device_count(), "backend": backend, "steps_per_dispatch": steps}
            print(json.dumps(row | {"us_per_step": round(step_us(backend, steps), 1)}), flush=True)


if __name__ == "__main__":
    main()
