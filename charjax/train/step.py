"""One training step as a pure function, and the state that it moves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from charjax.config import Config
from charjax.data.batches import Batch
from charjax.model.network import RowKeys, init_params, initial_carry, reset_carry
from charjax.runtime.keys import Stream, indexed_key, stream_key
from charjax.train.gradient import accumulated, make_gradient
from charjax.train.loss import make_total_nats
from charjax.train.scheduled_sampling import mix_inputs, sampling_rate
from charjax.types import Carry, Count, PyTree, Scalar


class TrainState(NamedTuple):
    """Everything that moves; a checkpoint holds exactly this.

    Attributes:
      step: updates tried so far; also the data's cursor.
      params: float32.
      opt_state: optax's.
      ema: averaged parameters, or () where `optim.ema` is 0.
      carry: the recurrent state of every lane.
      skipped: updates left out because loss or gradient was not finite.
    """

    step: Count
    params: PyTree
    opt_state: PyTree
    ema: PyTree
    carry: Carry
    skipped: Count

    @property
    def eval_params(self) -> PyTree:
        """What evaluation and sampling use: the averaged weights where there are any."""
        return self.ema or self.params


class StepMetrics(NamedTuple):
    """What one step reports: `loss` in nats per character, and the gradient's global norm."""

    loss: Scalar
    grad_norm: Scalar
    skipped: Count


Step: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


def init_state(
    config: Config, vocab_size: int, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step, a function of the config's seed."""
    params = init_params(config.model, vocab_size, stream_key(config.seed, Stream.INIT))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if config.optim.ema else (),
        carry=initial_carry(config.model, config.data.batch_size),
        skipped=jnp.zeros((), jnp.int32),
    )


def make_step(
    config: Config,
    vocab_size: int,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
) -> Step:
    """The training step.

    Args:
      config: the run.
      vocab_size: number of symbols.
      optimizer: from `make_optimizer`.
      axis_name: under `shard_map` or `pmap`, the axis that batch and carry are split
        over; then the step sums over it. None: batch and carry are whole.

    Returns:
      (state, batch) -> (state, metrics), pure. A step whose loss or gradient is not
      finite moves nothing but `step` and `skipped`.
    """
    whole = make_gradient(make_total_nats(config, vocab_size))
    parts = config.parallel.accumulate
    gradient = accumulated(whole, parts) if parts > 1 else whole

    def total(x: Any) -> Any:
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    lane_keys = partial(_lane_keys, config.seed, axis_name)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        carry = reset_carry(state.carry, jnp.asarray(batch.reset))
        if config.train.scheduled_sampling:
            guess_keys = lane_keys(Stream.SCHEDULED, state.step, batch.inputs.shape[0])
            batch = _with_guesses(config, state, carry, batch, guess_keys)
        if config.data.targets == "last":
            last: Any = jnp.asarray(batch.mask).at[:, :-1].set(False)
            batch = batch._replace(mask=last)
        keys = lane_keys(Stream.DROPOUT, state.step, batch.inputs.shape[0])
        counted = jnp.maximum(total(jnp.sum(batch.mask)), 1)
        loss, grads, carry = gradient(state.params, carry, batch, keys, counted)
        loss, grads = total(loss), total(grads)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        moved = state._replace(
            params=params,
            opt_state=opt_state,
            ema=_averaged(state, params, config.optim.ema),
            carry=carry,
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, state)
        skipped = state.skipped + jnp.where(finite, 0, 1)
        kept = kept._replace(step=state.step + 1, skipped=skipped)
        return kept, StepMetrics(loss, grad_norm, skipped)

    return train_step


def _with_guesses(
    config: Config, state: TrainState, carry: Carry, batch: Batch, keys: RowKeys
) -> Batch:
    """The batch, some of whose inputs the model guessed itself."""
    share, inputs = sampling_rate(config.train, state.step), jnp.asarray(batch.inputs)
    mixed: Any = mix_inputs(config.model, state.params, inputs, carry, keys, share)
    return batch._replace(inputs=mixed)


def _lane_keys(seed: int, axis_name: str | None, stream: Stream, step: Count, own: int) -> RowKeys:
    """A key for each of this device's `own` lanes, which are part of all under an axis."""
    lanes = jnp.arange(own)
    if axis_name is not None:
        lanes += own * jax.lax.axis_index(axis_name)
    key = indexed_key(stream_key(seed, stream), step)
    return jax.vmap(indexed_key, (None, 0))(key, lanes)


def repeat(step: Step) -> Step:
    """The step run over a leading axis of batches: several updates in one dispatch."""

    def steps(state: TrainState, batches: Batch) -> tuple[TrainState, StepMetrics]:
        return jax.lax.scan(step, state, batches)

    return steps


def _averaged(state: TrainState, params: PyTree, decay: float) -> PyTree:
    """Exponential moving average, whose decay rises to its value over the first steps."""
    if not decay:
        return ()
    rate = 1 - jnp.minimum(decay, (state.step + 1) / (state.step + 10))
    return jax.tree.map(lambda mean, p: mean + rate * (p - mean), state.ema, params)
