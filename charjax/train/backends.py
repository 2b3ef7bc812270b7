"""The step over all devices, by `jit` over a mesh or by `pmap`: one body, one result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from charjax.config import Config
from charjax.data.batches import Batch
from charjax.errors import InputError
from charjax.runtime.compiler_options import loop_compiler_options
from charjax.runtime.distributed import is_multiprocess
from charjax.runtime.sharding import (
    DATA_AXIS,
    all_devices,
    batch_sharding,
    data_mesh,
    process_rows,
    replicated,
    shard,
    shard_local,
)
from charjax.train.step import Step, StepMetrics, TrainState, make_step, repeat
from charjax.types import PyTree


@dataclass(frozen=True)
class Backend:
    """A way to run steps on the devices.

    Attributes:
      rows: of the global batch, those that this process feeds.
      place: a state as made or as restored, whole on every process -> the state on the
        devices. Never shares buffers with its argument, for `run` consumes what it is given.
      run: (state, `rows` of the batches stacked [steps, batch, ...]) -> (state, metrics
        [steps]). Consumes the state.
      whole: the state as global arrays, for checkpoints and evaluation.
    """

    rows: slice
    place: Callable[[TrainState], TrainState]
    run: Step
    whole: Callable[[TrainState], TrainState]


def make_backend(
    config: Config, vocab_size: int, optimizer: optax.GradientTransformation
) -> Backend:
    """The backend that `parallel.backend` names, over all devices of all processes.

    Raises:
      InputError: the batch does not divide by the number of devices, or their parts of it
        by `parallel.accumulate`.
    """
    shares = jax.device_count() * config.parallel.accumulate
    if config.data.batch_size % shares:
        accumulated = config.parallel.accumulate > 1
        raise InputError(
            f"config.data.batch_size={config.data.batch_size}: must be a multiple of the "
            f"{jax.device_count()} devices"
            f"{f' times config.parallel.accumulate={shares // jax.device_count()}' * accumulated}"
            f"; the nearest is {max(1, round(config.data.batch_size / shares)) * shares}"
        )
    make = {"jit": _jit_backend, "pmap": _pmap_backend}[config.parallel.backend]
    return make(config, vocab_size, optimizer)


def sharded_steps(
    config: Config, vocab_size: int, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Any:
    """The steps that the jit backend compiles: (state, stacked batches) -> (state, metrics).

    Every device runs the step on its own lanes, and meets the others only where the step
    says so. Left to XLA, the devices of a CPU exchange their states at every character.
    """
    everywhere, batches = replicated(mesh), batch_sharding(mesh, axis=1)
    given = _state_tree(everywhere, batch_sharding(mesh, axis=0)), batches
    made = given[0], everywhere
    steps = jax.shard_map(
        repeat(make_step(config, vocab_size, optimizer, axis_name=DATA_AXIS)),
        mesh=mesh,
        in_specs=jax.tree.map(lambda sharding: sharding.spec, given),
        out_specs=jax.tree.map(lambda sharding: sharding.spec, made),
        check_vma=False,  # as under pmap, the step sums gradients itself
    )
    return jax.jit(
        steps,
        in_shardings=given,
        out_shardings=made,
        donate_argnums=0,
        compiler_options=loop_compiler_options(),
    )


def _jit_backend(
    config: Config, vocab_size: int, optimizer: optax.GradientTransformation
) -> Backend:
    mesh = data_mesh(all_devices())
    run = sharded_steps(config, vocab_size, optimizer, mesh)
    shardings = _state_tree(replicated(mesh), batch_sharding(mesh, axis=0))
    batches = batch_sharding(mesh, axis=1)

    def place(state: TrainState) -> TrainState:
        own = jax.tree.map(np.array, state)
        return TrainState(*(shard(*part) for part in zip(own, shardings, strict=True)))

    def run_own(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        # One process leaves the cutting to jit, which is quicker at it.
        moved: tuple[TrainState, StepMetrics] = run(
            state, shard_local(batch, batches) if is_multiprocess() else batch
        )
        return moved

    return Backend(process_rows(config.data.batch_size), place, run_own, lambda state: state)


def _pmap_backend(
    config: Config, vocab_size: int, optimizer: optax.GradientTransformation
) -> Backend:
    rows, mesh_axes = process_rows(config.data.batch_size), _state_tree(None, 0)
    run = jax.pmap(
        repeat(make_step(config, vocab_size, optimizer, axis_name=DATA_AXIS)),
        axis_name=DATA_AXIS,
        in_axes=(mesh_axes, 1),
        out_axes=(mesh_axes, None),
        devices=all_devices(),
        donate_argnums=0,
    )

    def split(x: np.ndarray, axis: int) -> np.ndarray:
        return x.reshape(*x.shape[:axis], jax.local_device_count(), -1, *x.shape[axis + 1 :])

    def place(state: TrainState) -> TrainState:
        own: TrainState = jax.tree.map(np.array, state)
        return own._replace(carry=jax.tree.map(lambda c: split(c[rows], 0), own.carry))

    def run_split(state: TrainState, batches: Batch) -> tuple[TrainState, StepMetrics]:
        moved: tuple[TrainState, StepMetrics] = run(
            state, jax.tree.map(partial(split, axis=1), batches)
        )
        return moved

    def whole(state: TrainState) -> TrainState:
        # What pmap returns is local to this process; only global arrays can be saved by all.
        mesh = data_mesh(all_devices())
        own: TrainState = jax.tree.map(np.asarray, state)
        carry = jax.tree.map(lambda c: c.reshape(-1, c.shape[-1]), own.carry)
        shared = shard({**own._asdict(), "carry": ()}, replicated(mesh))
        return TrainState(**{**shared, "carry": shard_local(carry, batch_sharding(mesh, axis=0))})

    return Backend(rows, place, run_split, whole)


def _state_tree(shared: PyTree, lanes: PyTree) -> TrainState:
    """A prefix tree of the state: one value for what is shared, one for what has lanes."""
    return TrainState(
        step=shared, params=shared, opt_state=shared, ema=shared, carry=lanes, skipped=shared
    )
