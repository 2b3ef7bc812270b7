"""`configs/shakespeare_gru.py` as a whole: launch.py's loop, a plain Flax loop, the bare step."""

from __future__ import annotations

import json
import os
import runpy
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import ROOT
from benchmarks.peers.with_charjax import step_task
from benchmarks.peers.with_flax import CharModel
from benchmarks.worker import Task
from charjax.conditions import from_config_dict
from charjax.config import Config
from charjax.data.batches import Batch
from charjax.data.dataset import load_dataset
from charjax.runtime.display import make_display
from charjax.runtime.dtypes import resolve_dtype
from charjax.train.intervals import make_intervals
from charjax.train.loop import train
from charjax.train.optimizer import make_optimizer


def shortened(steps: int, small: bool) -> Config:
    """The shipped config with fewer steps.

    It evaluates and samples once, at its end, with validation text and sampled characters in
    the same proportion to the steps as in the whole run. `small` is for trying out.
    """
    values = runpy.run_path(str(ROOT / "configs" / "shakespeare_gru.py"))["get_config"]().to_dict()
    part = min(1.0, steps / values["train"]["eval_every"])
    val_fraction = values["data"]["split"][1] * part
    values["sample"]["num_chars"] = round(part * values["sample"]["num_chars"])
    values["data"]["split"] = (1 - val_fraction, val_fraction, 0.0)
    values["train"] |= {"max_steps": steps, "eval_every": min(steps, values["train"]["eval_every"])}
    values["train"]["log_every"] = max(1, min(values["train"]["log_every"], steps // 4))
    # No substitute text, unless `benchmarks.gpu` says which.
    values["data"]["offline"] = os.environ.get("BENCHMARK_OFFLINE", "")
    if small:
        values["model"] |= {"hidden": 32, "embed": 8}
    return resolve_dtype(from_config_dict(values))


def launch_float32(steps: int, small: bool) -> Task:
    """As `launch`, with `--config.model.dtype=float32`."""
    config = shortened(steps, small)
    return _launch(replace(config, model=replace(config.model, dtype="float32")))


def launch(steps: int, small: bool) -> Task:
    """What `launch.py` does after parsing its flags."""
    return _launch(shortened(steps, small))


def _launch(config: Config) -> Task:
    def run(units: int) -> dict[str, Any]:
        speeds = []
        for _ in range(units):
            with tempfile.TemporaryDirectory() as scratch, open(os.devnull, "w") as nowhere:
                workdir = Path(scratch) / "run"
                train(config, workdir, make_display(nowhere))
                lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            # The first record's time is mostly that of compiling.
            speeds += [json.loads(line)["chars_per_second"] for line in lines[1:] or lines]
        return {"training_chars_per_second": statistics.median(speeds)}

    about = {"dtype": config.model.dtype, "corpus": load_dataset(config).corpus.name}
    return Task(_chars(config), run, about)


def bare(steps: int, small: bool) -> Task:
    """The same step repeated on the same batches, `steps` per unit, and nothing else."""
    config = shortened(steps, small)
    text = load_dataset(config)
    longest = 0 if jax.default_backend() == "cpu" else 50  # as in a run; see `longest_dispatch`
    intervals = make_intervals(config.train, text.batches.steps_per_epoch, longest=longest)
    first = (text.batches(i) for i in range(intervals.dispatch))
    return step_task(config, len(text.vocab), Batch(*map(np.stack, zip(*first, strict=True))))


def plain(steps: int, small: bool) -> Task:
    """A plain training loop around Flax's `nn.RNN`: a jitted step, some losses read."""
    config = shortened(steps, small)

    def run(units: int) -> dict[str, Any]:
        for _ in range(units):
            val_loss = _plain_run(config)
        return {"val_loss": val_loss}

    return Task(_chars(config), run)


def _plain_run(config: Config) -> float:
    text, model = load_dataset(config), config.model
    sizes = model.hidden, model.embed, model.layers, len(text.vocab)
    network = CharModel(model.cell, *sizes, model.dropout)
    optimizer = make_optimizer(config.optim, config.train.max_steps)

    def loss_fn(params: Any, carry: Any, x: Any, y: Any, key: Any, train: bool) -> Any:
        rngs = {"dropout": key}
        logits, carry = network.apply(params, x, carry, train=train, rngs=rngs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), carry

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, opt_state: Any, carry: Any, x: Any, y: Any, key: Any) -> Any:
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, carry), grads = grad_fn(params, carry, x, y, key, True)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, carry, loss

    evaluate = jax.jit(partial(loss_fn, train=False))
    x = jnp.asarray(text.batches(0).inputs)
    key = jax.random.key(config.seed)
    params = jax.jit(network.init)(key, x, None)
    zeros = jax.tree.map(
        jnp.zeros_like, jax.eval_shape(partial(network.apply, train=False), params, x, None)[1]
    )
    # Copied, because the step donates its carry.
    carry, opt_state = jax.tree.map(jnp.copy, zeros), optimizer.init(params)
    for i in range(config.train.max_steps):
        batch = text.batches(i)
        key, step_key = jax.random.split(key)
        data = batch.inputs, batch.targets, step_key
        params, opt_state, carry, loss = step(params, opt_state, carry, *data)
        if i % config.train.log_every == 0:
            float(loss)

    return _val_loss(config, text.splits.val.ids, partial(evaluate, params, key=key), zeros)


def _val_loss(config: Config, ids: Any, evaluate: Callable[..., Any], carry: Any) -> float:
    """The mean loss of the validation split, read as one batch of streams."""
    batch_size, length = config.data.batch_size, config.data.seq_len
    size = (ids.size - 1) // batch_size
    x, y = (ids[i : i + batch_size * size].reshape(batch_size, size) for i in (0, 1))
    losses = []
    for part in (np.s_[:, i : i + length] for i in range(0, size - length + 1, length)):
        loss, carry = evaluate(carry, x[part], y[part])
        losses.append(loss)
    return float(np.mean(losses))


def _chars(config: Config) -> int:
    return config.train.max_steps * config.data.batch_size * config.data.seq_len
