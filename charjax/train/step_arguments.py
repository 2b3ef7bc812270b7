"""The checks of a training step's arguments, as it is traced."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from charjax.config import Config, OptimConfig
from charjax.data.batches import Batch
from charjax.errors import InputError
from charjax.train.train_state import TrainState


def check_arguments(config: Config, state: TrainState, batch: Batch) -> None:
    """Raises InputError for a state or a batch that does not fit the config, or each other."""
    _check_average(config.optim, state)
    _check_batch(batch)
    _check_sizes(config, batch, state)


def _check_batch(batch: Batch) -> None:
    """Raises InputError for arrays that XLA would broadcast, or of a dtype for something else."""
    shape = batch.inputs.shape
    if len(shape) != 2:
        raise InputError(f"batch.inputs of shape {shape}: must be [sequences, characters]")
    for name, wanted in zip(Batch._fields, [shape] * 3 + [shape[:1]], strict=True):
        found = getattr(batch, name).shape
        if found != wanted:
            raise InputError(
                f"batch.{name} of shape {found}: must be {wanted}, as the inputs are {shape}"
            )
    if not jnp.issubdtype(batch.targets.dtype, jnp.integer):
        raise InputError(f"batch.targets of dtype {batch.targets.dtype}: must be integers")
    if batch.mask.dtype != bool:
        raise InputError(f"batch.mask of dtype {batch.mask.dtype}: must be bool")


def _check_average(config: OptimConfig, state: TrainState) -> None:
    """Raises InputError for a state that lacks the average of a config, or has one without it."""
    if config.averages != bool(state.ema):
        raise InputError(
            f"state.ema {'has an average' if state.ema else 'is empty'}, with optim.name="
            f"{config.name} and optim.ema={config.ema:g}; make state and step with the same config"
        )


def _check_sizes(config: Config, batch: Batch, state: TrainState) -> None:
    """Raises InputError for a batch that does not fit the carry, or is not cut without a rest."""
    shape = batch.inputs.shape
    rows, length = shape
    num_carries = len(jax.tree.leaves(state.carry)[0])
    if rows != num_carries:
        raise InputError(f"batch.inputs of shape {shape}: the carry is of {num_carries} sequences")
    parts = ("parallel.accumulate", config.parallel.accumulate, rows, "sequences")
    blocks = ("model.remat", config.model.remat or 1, length, "characters")
    for field, number, size, what in (parts, blocks):
        if size % number:
            raise InputError(
                f"config.{field}={number}: must divide the {size} {what} of a batch, whose inputs "
                f"are {shape}"
            )
