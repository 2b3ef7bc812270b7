"""The training state: all arrays that a step changes, and their first values."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from charjax.config import Config, ModelConfig
from charjax.model.carry import initial_carry
from charjax.model.network import architecture, init_params
from charjax.runtime.keys import Stream, stream_key
from charjax.runtime.sharding import host_device
from charjax.schema import parse
from charjax.types import Carry, Count, PyTree


class TrainState(NamedTuple):
    """All arrays that a training step changes; a checkpoint holds exactly these.

    Attributes:
      step: int32, number of steps done; also the position in the data.
      params: float32 parameters of `CharRNN`.
      opt_state: the optimizer's state.
      ema: averaged parameters, or () without `optim.averages`: an exponential moving average, or
        that of `optim.name=schedule_free`.
      carry: the recurrent state of every sequence; its arrays are float32 [batch, hidden].
      skipped: int32, number of updates skipped because the loss or gradient was not finite.
    """

    step: Count
    params: PyTree
    opt_state: PyTree
    ema: PyTree
    carry: Carry
    skipped: Count

    @property
    def eval_params(self) -> PyTree:
        """The parameters for evaluation and sampling: the average if there is one."""
        return self.ema or self.params


def init_state(
    config: Config, vocab_size: int, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step, a function of `config.seed`, on the host.

    So a seed has the same parameters on any device, and they compile in less time than on a GPU.

    Args:
      config: the run; also what `get_config` of a config file returns.
      vocab_size: number of tokens.
      optimizer: as for `make_step`.

    Raises:
      InputError: a field is outside its limits, or there are no tokens.
    """
    config = parse(Config, config, "config")
    with jax.default_device(host_device()):
        params = init_params(config.model, vocab_size, stream_key(config.seed, Stream.INIT))
    return state_from(config, params, optimizer)


def state_from(
    config: Config, params: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step, with these parameters; on the host."""
    with jax.default_device(host_device()):
        state: TrainState = _init_others(
            architecture(config.model),
            config.data.batch_size,
            optimizer,
            config.optim.averages,
            params,
        )
    return state._replace(params=params)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))  # compiles one program instead of twenty
def _init_others(
    model: ModelConfig,
    batch_size: int,
    optimizer: optax.GradientTransformation,
    averages: bool,
    params: PyTree,
) -> TrainState:
    """The state before the first step, without the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=(),
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if averages else (),
        carry=initial_carry(model, batch_size),
        skipped=jnp.zeros((), jnp.int32),
    )
