"""The training step as a pure function of the training state and a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from charjax.config import Config, DataConfig, OptimConfig, ParallelConfig, TrainConfig
from charjax.data.batches import Batch, read_slices
from charjax.data.tokens.ids import check_special
from charjax.model.carry import reset_carry
from charjax.model.network import RowKeys
from charjax.runtime.keys import Stream, indexed_key, stream_key
from charjax.schema import parse
from charjax.train.loss import DropoutKeys, accumulate, make_loss_and_grad, make_total_nats
from charjax.train.optimizer import Schedule, schedule_free_average
from charjax.train.scheduled_sampling import mix_inputs, sampling_rate
from charjax.train.step_arguments import check_arguments
from charjax.train.train_state import TrainState
from charjax.types import Count, PyTree, Scalar


class StepMetrics(NamedTuple):
    """The metrics of one step, or of several along a leading axis.

    Attributes:
      loss: in nats per character.
      grad_norm: global norm of the gradient, before clipping.
      learning_rate: that of the newest update that was not skipped; None without a schedule.
      skipped: number of updates skipped so far in the run.
    """

    loss: Scalar
    grad_norm: Scalar
    learning_rate: Scalar | None
    skipped: Count


Step: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
# Several steps: (state, batches [steps, batch, ...] or what they are made of) -> (state, metrics
# [steps]).
Steps: TypeAlias = Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]


def fields_of_step(config: Config) -> Config:
    """The fields that a step depends on, the others at their defaults.

    What is compiled for it serves all runs that differ in when they evaluate, save and end, in
    their samples, and in how their text is read.
    """
    data, train = config.data, config.train
    return Config(
        seed=config.seed,
        data=DataConfig(batch_size=data.batch_size, seq_len=data.seq_len, targets=data.targets),
        model=config.model,
        optim=config.optim,
        train=TrainConfig(
            scheduled_sampling=train.scheduled_sampling,
            scheduled_ramp=train.scheduled_ramp,
            softmax_temperature=train.softmax_temperature,
        ),
        parallel=ParallelConfig(accumulate=config.parallel.accumulate),
    )


def make_step(
    config: Config,
    vocab_size: int,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
    schedule: Schedule | None = None,
    *,
    boundary_id: int | None = None,
) -> Step:
    """The training step.

    Args:
      config: the run; also what `get_config` of a config file returns.
      vocab_size: number of tokens.
      optimizer: from `make_optimizer`, or another one of optax whose update needs only gradients,
        its state and parameters. `optim.name=schedule_free` needs that of `make_optimizer`.
      axis_name: the `shard_map` or `pmap` axis along which batch and carry are split; the step
        sums loss and gradients over it. None if the step gets the whole batch.
      schedule: that of the optimizer, from `make_schedule`, for the metrics.
      boundary_id: `Vocab.boundary_id`, the token at which the carry resets, or None.

    Returns:
      A pure function (state, batch) -> (state, metrics). If the loss or the gradient is not
      finite, it changes nothing but `step` and `skipped`. It raises InputError for a batch whose
      arrays do not fit together, the carry, or the fields that divide a batch; and for a state
      that has an average where the config has none, or none where it has one.

    Raises:
      InputError: a field is outside its limits, or the boundary outside the vocabulary.
    """
    config = parse(Config, config, "config")
    check_special(vocab_size, boundary_id)
    loss_and_grad = make_loss_and_grad(make_total_nats(config, vocab_size, boundary_id))
    if config.parallel.accumulate > 1:
        loss_and_grad = accumulate(loss_and_grad, config.parallel.accumulate)
    row_keys, psum = partial(_row_keys, config.seed, axis_name), partial(_psum, axis_name)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        check_arguments(config, state, batch)
        carry = reset_carry(state.carry, jnp.asarray(batch.reset))
        if config.train.scheduled_sampling:
            keys = row_keys(Stream.SCHEDULED, state.step, batch.inputs.shape[0])
            rate, true = sampling_rate(config.train, state.step), jnp.asarray(batch.inputs)
            mixed: Any = mix_inputs(
                config.model, state.params, true, carry, keys, rate, boundary_id
            )
            batch = batch._replace(inputs=mixed)
        if config.data.targets == "last":  # a batch from elsewhere may not be masked
            mask: Any = jnp.asarray(batch.mask).at[:, :-1].set(False)
            batch = batch._replace(mask=mask)
        dropout_keys = DropoutKeys(
            rows=row_keys(Stream.DROPOUT, state.step, batch.inputs.shape[0]),
            weights=indexed_key(stream_key(config.seed, Stream.WEIGHT_DROPOUT), state.step),
        )
        num_targets = jnp.maximum(psum(jnp.sum(batch.mask)), 1)
        (loss, carry), grads = loss_and_grad(state.params, carry, batch, dropout_keys, num_targets)
        loss, grads = psum(loss), psum(grads)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = _update_average(config.optim, state, params, opt_state)
        updated = state._replace(params=params, opt_state=opt_state, ema=ema, carry=carry)
        state = _count_step(jnp.isfinite(loss) & jnp.isfinite(grad_norm), updated, state)
        return state, StepMetrics(loss, grad_norm, _last_rate(schedule, state), state.skipped)

    return train_step


def repeat(step: Step) -> Steps:
    """Scans a step over a leading axis of the batches: several updates in one dispatch."""
    return partial(jax.lax.scan, step)


def repeat_on_slices(step: Step, length: int) -> Steps:
    """As `repeat`, but each step makes its batch of the token ids, which stay on the device.

    Args:
      step: from `make_step`.
      length: inputs of each sequence.

    Returns:
      A function (state, (token ids, slices [steps, batch])) -> (state, metrics).
    """

    def steps(state: TrainState, text: Any) -> tuple[TrainState, StepMetrics]:
        ids, slices = text
        return jax.lax.scan(
            lambda state, at: step(state, read_slices(ids, at, length)), state, slices
        )

    return steps


def _psum(axis_name: str | None, x: Any) -> Any:
    """The sum over an axis of devices; without one, the argument."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def _row_keys(
    seed: int, axis_name: str | None, stream: Stream, step: Count, num_rows: int
) -> RowKeys:
    """One key per sequence on this device, by its index in the global batch."""
    rows = jnp.arange(num_rows)
    if axis_name is not None:
        rows += num_rows * jax.lax.axis_index(axis_name)
    key = indexed_key(stream_key(seed, stream), step)
    return jax.vmap(indexed_key, (None, 0))(key, rows)


def _update_average(
    config: OptimConfig, state: TrainState, params: PyTree, opt_state: PyTree
) -> PyTree:
    """The averaged parameters: an exponential moving average, unless the optimizer has its own.

    Its decay rises to `ema` as (step + 1) / (step + 10). Until then it is the polynomial-decay
    average of Shamir and Zhang (2013): the parameters of step s weigh s^8, and their mean age is a
    tenth of the run so far.
    """
    if config.name == "schedule_free":
        return schedule_free_average(opt_state, params)
    if not config.ema:
        return ()
    rate = 1 - jnp.minimum(config.ema, (state.step + 1) / (state.step + 10))
    return optax.incremental_update(params, state.ema, rate)


def _count_step(is_finite: Any, updated: TrainState, state: TrainState) -> TrainState:
    """The updated state if it is finite, else the old one; counts the step in both cases."""
    chosen: TrainState = jax.tree.map(
        lambda new, old: jnp.where(is_finite, new, old), updated, state
    )
    skipped = state.skipped + jnp.where(is_finite, 0, 1)
    return chosen._replace(step=state.step + 1, skipped=skipped)


def _last_rate(schedule: Schedule | None, state: TrainState) -> Scalar | None:
    """The learning rate of the newest update; optax counts updates from 0."""
    if schedule is None:
        return None  # and no NaN, which `jax_debug_nans` would report
    return jnp.asarray(schedule(jnp.maximum(state.step - state.skipped, 1) - 1), jnp.float32)
