"""The step over all devices, by `jit` over a mesh or by `pmap`: one body, one result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from charjax.config import Config
from charjax.data.batches import Batch
from charjax.errors import InputError
from charjax.train.step import Step, StepMetrics, TrainState, make_step, repeat
from charjax.types import PyTree

_AXIS = "lanes"


@dataclass(frozen=True)
class Backend:
    """A way to run steps on the devices.

    Attributes:
      place: a state as made or as restored -> the state on the devices. Never
        shares buffers with its argument, for `run` consumes what it is given.
      run: (state, batches stacked [steps, batch, ...]) -> (state, metrics [steps]).
        Consumes the state.
      whole: the state as `place` takes it, for checkpoints.
    """

    place: Callable[[TrainState], TrainState]
    run: Step
    whole: Callable[[TrainState], TrainState]


def make_backend(
    config: Config, vocab_size: int, optimizer: optax.GradientTransformation
) -> Backend:
    """The backend that `parallel.backend` names, over all devices.

    Raises:
      InputError: the batch does not divide by the number of devices.
    """
    devices = jax.device_count()
    if config.data.batch_size % devices:
        raise InputError(
            f"config.data.batch_size={config.data.batch_size}: must be a multiple of the "
            f"{devices} devices; the nearest is "
            f"{max(1, round(config.data.batch_size / devices)) * devices}"
        )
    make = {"jit": _jit_backend, "pmap": _pmap_backend}[config.parallel.backend]
    return make(config, vocab_size, optimizer)


def _jit_backend(
    config: Config, vocab_size: int, optimizer: optax.GradientTransformation
) -> Backend:
    # Explicit axes, the default of make_mesh, break the embedding's look-up.
    mesh = jax.make_mesh((jax.device_count(),), (_AXIS,), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    shardings = _state_tree(everywhere, NamedSharding(mesh, PartitionSpec(_AXIS)))
    batches = NamedSharding(mesh, PartitionSpec(None, _AXIS))
    run = jax.jit(
        repeat(make_step(config, vocab_size, optimizer)),
        in_shardings=(shardings, batches),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )

    def place(state: TrainState) -> TrainState:
        own = jax.tree.map(np.array, state)
        return TrainState(*(_put(*part) for part in zip(own, shardings, strict=True)))

    def run_global(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        moved: tuple[TrainState, StepMetrics] = run(state, _put(batch, batches))
        return moved

    return Backend(place, run_global, lambda state: state)


def _pmap_backend(
    config: Config, vocab_size: int, optimizer: optax.GradientTransformation
) -> Backend:
    devices, mesh_axes = jax.device_count(), _state_tree(None, 0)
    run = jax.pmap(
        repeat(make_step(config, vocab_size, optimizer, axis_name=_AXIS)),
        axis_name=_AXIS,
        in_axes=(mesh_axes, 1),
        out_axes=(mesh_axes, None),
        donate_argnums=0,
    )

    def split(x: np.ndarray, axis: int) -> np.ndarray:
        return x.reshape(*x.shape[:axis], devices, -1, *x.shape[axis + 1 :])

    def place(state: TrainState) -> TrainState:
        own: TrainState = jax.tree.map(np.array, state)
        return own._replace(carry=jax.tree.map(lambda c: split(c, 0), own.carry))

    def run_split(state: TrainState, batches: Batch) -> tuple[TrainState, StepMetrics]:
        moved: tuple[TrainState, StepMetrics] = run(
            state, jax.tree.map(partial(split, axis=1), batches)
        )
        return moved

    def whole(state: TrainState) -> TrainState:
        return state._replace(carry=jax.tree.map(lambda c: c.reshape(-1, c.shape[-1]), state.carry))

    return Backend(place, run_split, whole)


def _state_tree(shared: PyTree, lanes: PyTree) -> TrainState:
    """A prefix tree of the state: one value for what is shared, one for what has lanes."""
    return TrainState(
        step=shared, params=shared, opt_state=shared, ema=shared, carry=lanes, skipped=shared
    )


def _put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Host arrays on the devices; in several processes each puts the part it can address."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda at: leaf[at]), tree
    )
