"""Gradient transformation and learning-rate schedule of a config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from charjax.config import OptimConfig
from charjax.types import Count, PyTree, Scalar

# A one-cycle schedule starts at this fraction of its peak (Smith and Topin 2017).
_ONECYCLE_START = 1 / 25


def make_schedule(config: OptimConfig, total_steps: int) -> Callable[[int | Count], Scalar]:
    """Step -> learning rate.

    Linear warm-up over the first `warmup` fraction of `total_steps`, then the
    decay that `schedule` names, down to `final` times the peak. `onecycle` rises
    and falls along half cosines.

    Args:
      config: peak and shape.
      total_steps: where the decay ends; unused by `constant` without warm-up.
    """
    warmup = round(config.warmup * total_steps)

    def schedule(step: int | Count) -> Scalar:
        rise = jnp.clip((jnp.asarray(step) + 1) / max(warmup, 1), 0, 1)
        fall = jnp.clip((jnp.asarray(step) - warmup) / max(total_steps - warmup, 1), 0, 1)
        half_cosine = (1 + jnp.cos(jnp.pi * fall)) / 2
        if config.schedule == "onecycle":
            rise = _ONECYCLE_START + (1 - _ONECYCLE_START) * (1 - jnp.cos(jnp.pi * rise)) / 2
        left = {
            "constant": jnp.ones(()),
            "linear": 1 - fall,
            "cosine": half_cosine,
            "onecycle": half_cosine,
        }[config.schedule]
        shape = config.final + (1 - config.final) * left
        return config.learning_rate * rise * shape

    return schedule


def make_optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then the named optimizer under its schedule."""
    schedule = make_schedule(config, total_steps)
    if config.name == "sgd":
        rule = optax.sgd(schedule, momentum=config.b1)
    elif config.name == "rmsprop":
        rule = optax.rmsprop(schedule, decay=config.b2, eps=config.eps, eps_in_sqrt=False)
    else:
        decay = optax.add_decayed_weights(config.weight_decay, mask=_kernels)
        rule = optax.chain(
            _scale_by_adam(config),
            *([decay] if config.name == "adamw" else []),
            optax.scale_by_learning_rate(schedule),
        )
    if config.clip_norm == 0:
        return rule
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)


def _scale_by_adam(config: OptimConfig) -> optax.GradientTransformation:
    """Adam's direction (Kingma and Ba 2015), with either of the paper's epsilons."""
    if not config.eps_hat:
        return optax.scale_by_adam(config.b1, config.b2, config.eps)

    def init(params: PyTree) -> optax.ScaleByAdamState:
        mean, square = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mean, square)

    def update(
        grads: PyTree, state: optax.ScaleByAdamState, params: PyTree = None
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        mean = optax.tree.update_moment(grads, state.mu, config.b1, 1)
        square = optax.tree.update_moment_per_elem_norm(grads, state.nu, config.b2, 2)
        rate = jnp.sqrt(1 - config.b2**count) / (1 - config.b1**count)
        direction = jax.tree.map(lambda m, v: rate * m / (jnp.sqrt(v) + config.eps), mean, square)
        return direction, optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def _kernels(params: PyTree) -> PyTree:
    """True for what is multiplied with: decay belongs on products, not on biases or a table.

    A row of the embedding has a gradient only where its character occurs, yet would decay at
    every step, so that rare characters would fade.
    """

    def is_kernel(path: tuple[Any, ...], param: jax.Array) -> bool:
        return param.ndim > 1 and "embedding" not in jax.tree_util.keystr(path)

    return jax.tree_util.tree_map_with_path(is_kernel, params)
