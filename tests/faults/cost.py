"""Fraction of training time that digests and verification take in configs/shakespeare_gru.py."""

from __future__ import annotations

import runpy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from charjax.checkpoint.checkpoints import Checkpoints, flatten
from charjax.checkpoint.record import Leaf
from charjax.checkpoint.store import to_host
from charjax.conditions import from_config_dict
from charjax.data.dataset import load_dataset
from charjax.runtime.dtypes import resolve_dtype
from charjax.train.backends import make_backend
from charjax.train.optimizer import make_optimizer
from charjax.train.run import describe
from charjax.train.train_state import init_state

_CONFIG = Path(__file__).parents[2] / "configs" / "shakespeare_gru.py"
_DISPATCH, _LIMIT_PERCENT = 10, 5.0


def check_cost(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Measures each time n times and returns the figures of the page, medians."""
    values = runpy.run_path(str(_CONFIG))["get_config"]().to_dict()
    config = resolve_dtype(from_config_dict(values))
    text = load_dataset(config)
    optimizer = make_optimizer(config.optim, config.train.max_steps)
    backend = make_backend(config, len(text.vocab), optimizer)
    state = backend.place(init_state(config, len(text.vocab), optimizer))
    batches = backend.inputs(text.batches, range(_DISPATCH))
    state, _ = jax.block_until_ready(backend.run(state, batches))

    steps_s, digests_s, saves_s, verify_s = [], [], [], []
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    meta = describe(config, text, parameters, None).to_json()
    with Checkpoints(folder / "checkpoints") as saved:
        for number in range(n):
            began = time.perf_counter()
            state, _ = jax.block_until_ready(backend.run(state, batches))
            steps_s.append((time.perf_counter() - began) / _DISPATCH)
            arrays = to_host(flatten(state)[0])
            digests_s.append(_seconds(lambda a=arrays: [Leaf.of(x) for x in a.values()]))
            saves_s.append(
                _seconds(lambda s=state, i=number: saved.save(i, s, meta, val_loss=None))
            )
            verify_s.append(_seconds(saved.verify))
    every = config.train.checkpoint_every or config.train.eval_every
    step, digest, save, verify = map(statistics.median, (steps_s, digests_s, saves_s, verify_s))
    percent = 100 * (digest + verify) / (every * step)
    return {
        "config": "configs/shakespeare_gru.py",
        "corpus": text.corpus.name,
        "checkpoint_every_steps": every,
        "bytes_of_a_state": sum(x.nbytes for x in arrays.values()),
        "step_ms": round(1000 * step, 2),
        "digests_ms": round(1000 * digest, 1),
        "whole_save_ms": round(1000 * save, 1),
        "verification_of_a_checkpoint_ms": round(1000 * verify, 1),
        "digests_percent": round(100 * digest / (every * step), 3),
        "digests_and_verification_percent": round(percent, 3),
        "whole_save_percent": round(100 * save / (every * step), 3),
        "problems": [],
        "passed": percent <= _LIMIT_PERCENT,
    }


def _seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
