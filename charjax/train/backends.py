"""Runs the training step on all devices: `jit` over a mesh, or `pmap`, with equal results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from charjax.config import Config
from charjax.data.batches import Batch, Batches, Slices
from charjax.errors import InputError
from charjax.model.recurrence.api import resolve
from charjax.runtime import sharding
from charjax.runtime.compiler_options import network_compiler_options
from charjax.runtime.distributed import is_multiprocess
from charjax.train.optimizer import Schedule
from charjax.train.step import (
    StepMetrics,
    Steps,
    fields_of_step,
    make_step,
    repeat,
    repeat_on_slices,
)
from charjax.train.train_state import TrainState
from charjax.types import PyTree


@dataclass(frozen=True)
class Backend:
    """A way to run training steps on the devices of all processes.

    Attributes:
      rows: the rows of the global batch that this process feeds.
      place: copies a state to the devices. Every process passes the whole state, as it was
        initialized or restored.
      run: (state, what `inputs` gives) -> (state, metrics [steps]). Donates the state.
      to_global: returns the state as global arrays, for checkpoints and evaluation.
      slices: whether the devices have the text, so that steps need to know only which slices of
        it they read.
    """

    rows: slice
    place: Callable[[TrainState], TrainState]
    run: Steps
    to_global: Callable[[TrainState], TrainState]
    slices: bool = False

    def inputs(self, batches: Batches, steps: range) -> Batch | Slices:
        """The argument of `run` for these steps: arrays [steps, batch, ...] of numpy."""
        make = batches.slices if self.slices else batches
        parts = [make(step, self.rows) for step in steps]
        return type(parts[0])(*map(np.stack, zip(*parts, strict=True)))


def microbatch_size(config: Config) -> int:
    """How many sequences one device computes at once.

    Raises:
      InputError: the batch size is not a multiple of devices times `parallel.accumulate`.
    """
    devices, accumulate = jax.device_count(), config.parallel.accumulate
    microbatches = devices * accumulate
    size, rest = divmod(config.data.batch_size, microbatches)
    if rest:
        factors = [f"the {devices} devices"] if devices > 1 else []
        factors += [f"config.parallel.accumulate={accumulate}"] if accumulate > 1 else []
        raise InputError(
            f"config.data.batch_size={config.data.batch_size}: must be a multiple of "
            f"{' times '.join(factors)}; the nearest is "
            f"{max(1, round(config.data.batch_size / microbatches)) * microbatches}"
        )
    return size


def make_backend(
    config: Config,
    vocab_size: int,
    optimizer: optax.GradientTransformation,
    schedule: Schedule | None = None,
    *,
    boundary_id: int | None = None,
    tokens: np.ndarray | None = None,
) -> Backend:
    """The backend that `parallel.backend` names.

    Args:
      config: as for `make_step`, like the arguments not named here.
      vocab_size: number of tokens.
      optimizer: from `make_optimizer`.
      schedule: of the optimizer.
      boundary_id: of the token at which the carry resets.
      tokens: `Batches.ids`, to copy them to the devices, which then slice their own batches; under
        `jit` alone. None: `run` takes batches.

    Raises:
      InputError: see `microbatch_size`.
    """
    microbatch = microbatch_size(config)
    rows = sharding.process_rows(config.data.batch_size)
    # XLA copies the operands of a sum over one device.
    axis_name = sharding.DATA_AXIS if jax.device_count() > 1 else None
    others = optimizer, schedule, boundary_id, tokens is not None, axis_name
    steps = _make_steps(fields_of_step(config), vocab_size, *others)
    if config.parallel.backend == "pmap":
        return _pmap_backend(steps, rows)
    implementation = resolve(config.model, microbatch, strict=False).implementation
    return _jit_backend(steps, rows, tokens, implementation)


# So that a run resumed in the same process, and one like it, are not traced and compiled again.
@functools.lru_cache(maxsize=16)
def _make_steps(
    config: Config,
    vocab_size: int,
    optimizer: optax.GradientTransformation,
    schedule: Schedule | None,
    boundary_id: int | None,
    on_slices: bool,
    axis_name: str | None,
) -> Steps:
    step = make_step(config, vocab_size, optimizer, axis_name, schedule, boundary_id=boundary_id)
    return repeat_on_slices(step, config.data.seq_len) if on_slices else repeat(step)


@functools.lru_cache(maxsize=16)
def shard_steps(
    steps: Steps, mesh: Mesh, *, with_tokens: bool = False, implementation: str = ""
) -> Steps:
    """Compiles steps (state, batches [steps, batch, ...]) -> (state, metrics [steps]) for a mesh.

    With tokens, (token ids, slices) take the place of the batches; every device has all ids.

    With `shard_map` each device runs its sequences alone, and the only collectives are the sums in
    the step. XLA's partitioner would exchange carries between devices at every character.
    """
    everywhere, batches = sharding.replicated(mesh), sharding.batch_sharding(mesh, axis=1)
    state = _state_prefix(everywhere, sharding.batch_sharding(mesh, axis=0))
    inputs = state, (everywhere, batches) if with_tokens else batches
    outputs = state, everywhere
    sharded = jax.shard_map(
        steps,
        mesh=mesh,
        in_specs=jax.tree.map(lambda s: s.spec, inputs),
        out_specs=jax.tree.map(lambda s: s.spec, outputs),
        check_vma=False,  # the step sums the gradients itself, as under pmap
    )
    return jax.jit(
        sharded,
        in_shardings=inputs,
        out_shardings=outputs,
        donate_argnums=0,
        compiler_options=network_compiler_options(implementation),
    )


def _jit_backend(
    steps: Steps, rows: slice, tokens: np.ndarray | None, implementation: str
) -> Backend:
    mesh = sharding.data_mesh()
    slices = tokens is not None
    run = shard_steps(steps, mesh, with_tokens=slices, implementation=implementation)
    ids = sharding.shard(tokens, sharding.replicated(mesh)) if slices else None
    shardings = _state_prefix(sharding.replicated(mesh), sharding.batch_sharding(mesh, axis=0))
    batches = sharding.batch_sharding(mesh, axis=1)

    def place(state: TrainState) -> TrainState:
        copy = jax.tree.map(np.array, state)
        return TrainState(*(sharding.shard(*part) for part in zip(copy, shardings, strict=True)))

    def run_batches(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        # With one process jit shards the batch, which is faster.
        local = sharding.shard_local(batch, batches) if is_multiprocess() else batch
        return run(state, (ids, local) if slices else local)

    return Backend(rows, place, run_batches, lambda state: state, slices)


def _pmap_backend(steps: Steps, rows: slice) -> Backend:
    axes = _state_prefix(None, 0)
    run: Steps = jax.pmap(
        steps,
        axis_name=sharding.DATA_AXIS,
        in_axes=(axes, 1),
        out_axes=(axes, None),
        devices=sharding.all_devices(),
        donate_argnums=0,
    )

    def split(x: np.ndarray, axis: int) -> np.ndarray:
        return x.reshape(*x.shape[:axis], jax.local_device_count(), -1, *x.shape[axis + 1 :])

    def place(state: TrainState) -> TrainState:
        copy: TrainState = jax.tree.map(np.array, state)
        return copy._replace(carry=jax.tree.map(lambda c: split(c[rows], 0), copy.carry))

    def run_split(state: TrainState, batches: Batch) -> tuple[TrainState, StepMetrics]:
        return run(state, jax.tree.map(partial(split, axis=1), batches))

    def to_global(state: TrainState) -> TrainState:
        # pmap returns arrays of this process; several processes can save only global ones.
        mesh = sharding.data_mesh()
        local: TrainState = jax.tree.map(np.asarray, state)
        carry = jax.tree.map(lambda c: c.reshape(-1, c.shape[-1]), local.carry)
        state = sharding.shard(local._replace(carry=()), sharding.replicated(mesh))
        return state._replace(
            carry=sharding.shard_local(carry, sharding.batch_sharding(mesh, axis=0))
        )

    return Backend(rows, place, run_split, to_global)


def _state_prefix(replicated: PyTree, sharded: PyTree) -> TrainState:
    """A prefix tree of the state: `sharded` for the carry, `replicated` for all else."""
    return TrainState(*[replicated] * len(TrainState._fields))._replace(carry=sharded)
