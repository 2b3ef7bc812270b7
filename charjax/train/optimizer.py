"""The optimizers and learning-rate schedules that a config can name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from charjax.conditions import check_frozen
from charjax.config import OptimConfig
from charjax.schema import check_integer, parse
from charjax.types import Count, PyTree, Scalar

# Number of updates done -> learning rate of the next update.
Schedule: TypeAlias = Callable[[int | Count], Scalar | float]

# Of Muon's Newton-Schulz iteration (Jordan et al. 2024), in float32, as all of a state.
_MUON_COEFFICIENTS = (np.float32(3.4445), np.float32(-4.7750), np.float32(2.0315))
# A one-cycle schedule starts at this fraction of its peak (Smith and Topin 2017).
_ONECYCLE_START = 1 / 25


def make_schedule(config: OptimConfig, total_steps: int) -> Schedule:
    """The learning-rate schedule: warm-up, then decay.

    The warm-up takes the fraction `warmup` of `total_steps`. It is linear from 1/(warm-up steps)
    of the peak; that of `onecycle` is a half cosine. The decay goes down to `final` times the peak.
    Equal arguments give the same object, so that what was compiled with it is found again.

    Args:
      config: `schedule`, `learning_rate` (the peak), `warmup` and `final`.
      total_steps: the step at which the decay ends, from 1 on; `constant` without warm-up ignores
        it.

    Raises:
      InputError: a field is outside its limits, or there are no steps to schedule.
    """
    config = parse(OptimConfig, config, "config.optim")
    if config.schedule == "constant" and not config.warmup:
        return _make_schedule(config, 0)
    return _make_schedule(config, check_integer("total_steps", total_steps, 1, sys.maxsize))


@functools.cache
def _make_schedule(config: OptimConfig, total_steps: int) -> Schedule:
    peak, warmup = config.learning_rate, round(config.warmup * total_steps)
    decay_steps = max(total_steps - warmup, 1)
    decay: Schedule = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, peak * config.final, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, config.final),
        "onecycle": optax.cosine_decay_schedule(peak, decay_steps, config.final),
    }[config.schedule]
    if warmup == 0:
        return decay
    if config.schedule == "onecycle":
        ramp = optax.schedules.piecewise_interpolate_schedule(
            "cosine", peak * _ONECYCLE_START, {warmup: 1 / _ONECYCLE_START}
        )
    else:
        ramp = optax.linear_schedule(0.0, peak, warmup)
    # count + 1, since a ramp from 0 would give the first update a learning rate of 0.
    joined: Schedule = optax.join_schedules([lambda count: ramp(count + 1), decay], [warmup])
    return joined


def make_optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """The optimizer that a config names, with its schedule, after clipping by global norm.

    Frozen parameters have no updates, and their gradients do not count in the norm. Equal arguments
    give the same object, as for `make_schedule`.

    Args:
      config: which optimizer and schedule, and their parameters; also the section of a
        `ConfigDict`.
      total_steps: as for `make_schedule`.

    Raises:
      InputError: as `make_schedule`.
    """
    config = parse(OptimConfig, config, "config.optim")
    return _make_optimizer(config, make_schedule(config, total_steps))


@functools.cache
def _make_optimizer(config: OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    optimizer = OPTIMIZERS[config.name](config, schedule)
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if not config.frozen:
        return optimizer
    parts = {"trained": optimizer, "frozen": optax.set_to_zero()}
    return optax.partition(parts, partial(_freeze_labels, config.frozen))


def _freeze_labels(frozen: Collection[str], params: PyTree) -> dict[str, str]:
    """Labels each top-level entry of the parameters as "frozen" or "trained".

    Raises:
      InputError: these parameters have no such part, or all are frozen.
    """
    parts = {name: "output" if name.startswith("output") else name for name in params}
    check_frozen(frozen, parts.values())
    return {name: "frozen" if part in frozen else "trained" for name, part in parts.items()}


def _adamw(config: OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    return optax.chain(
        _scale_by_adam(config),
        optax.add_decayed_weights(config.weight_decay, mask=_kernel_mask),
        optax.scale_by_learning_rate(schedule),
    )


def _muon(config: OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) on kernels, Adam with Nesterov momentum on all other parameters.

    The updates of a kernel have the root mean square of those of Adam, 0.2 (Liu et al. 2025), so
    that both take the same learning rate and weight decay.
    """

    def dimensions(params: PyTree) -> PyTree:
        matrix = optax.contrib.MuonDimensionNumbers()
        return jax.tree.map(lambda is_kernel: matrix if is_kernel else None, _kernel_mask(params))

    return optax.contrib.muon(
        schedule,
        _MUON_COEFFICIENTS,
        beta=config.b1,
        eps=config.eps,
        weight_decay=config.weight_decay,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=0.2,
    )


def _schedule_free(config: OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Schedule-free AdamW (Defazio et al. 2024).

    The parameters that it trains are `b1` parts the average, and 1 - `b1` parts the newest iterate.
    """
    adamw_without_momentum = optax.chain(
        optax.scale_by_rms(config.b2, config.eps, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(config.weight_decay, mask=_kernel_mask),
        optax.scale_by_learning_rate(schedule),
    )
    schedule_free = optax.contrib.schedule_free(adamw_without_momentum, schedule, config.b1)

    def init(params: PyTree) -> optax.contrib.ScheduleFreeState:
        # optax counts from 1: an iterate of a warm-up would weigh as the next one does.
        return schedule_free.init(params)._replace(step_count=jnp.zeros([], jnp.int32))

    return optax.GradientTransformation(init, schedule_free.update)


# By the names of `charjax.config.OPTIMIZER_FIELDS`, which lists the config fields of each.
OPTIMIZERS: dict[str, Callable[[OptimConfig, Schedule], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adam": lambda c, rate: optax.chain(_scale_by_adam(c), optax.scale_by_learning_rate(rate)),
    "rmsprop": lambda c, rate: optax.rmsprop(rate, decay=c.b2, eps=c.eps, eps_in_sqrt=False),
    "sgd": lambda c, rate: optax.sgd(rate, momentum=c.b1),
    "muon": _muon,
    "schedule_free": _schedule_free,
}


def schedule_free_average(opt_state: PyTree, params: PyTree) -> PyTree:
    """The averaged weights of `schedule_free`, for evaluation.

    As `optax.contrib.schedule_free_eval_params`, from the state of `make_optimizer`. Frozen
    parameters are their own average.
    """
    state = optax.tree.get(opt_state, "ScheduleFreeState")

    def is_frozen(iterate: PyTree) -> bool:
        return isinstance(iterate, optax.MaskedNode)

    def average(iterate: PyTree, param: PyTree) -> PyTree:
        return param if is_frozen(iterate) else (param - (1 - state.b1) * iterate) / state.b1

    return jax.tree.map(average, state.z, params, is_leaf=is_frozen)


def _scale_by_adam(config: OptimConfig) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015), with epsilon added after or before the bias correction."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    if not config.eps_hat:
        return adam

    def update(
        grads: PyTree, state: optax.ScaleByAdamState, params: PyTree = None
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, config.b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, config.b2, 2)
        rate = jnp.sqrt(1 - config.b2**count) / (1 - config.b1**count)
        updates = jax.tree.map(lambda m, v: rate * m / (jnp.sqrt(v) + config.eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(adam.init, update)


def _kernel_mask(params: PyTree) -> PyTree:
    """A mask of the parameters: True for kernels, False for biases and the embedding.

    Weight decay is for kernels alone. The embedding of a token has a gradient only at steps where
    the token occurs, but would decay at every step, so that rare tokens would vanish.
    """

    def is_kernel(path: tuple[Any, ...], param: jax.Array) -> bool:
        return param.ndim > 1 and "embedding" not in jax.tree_util.keystr(path)

    return jax.tree_util.tree_map_with_path(is_kernel, params)
