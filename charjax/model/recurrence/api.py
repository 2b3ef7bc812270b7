"""The recurrence as one operation: `resolve` chooses an implementation, `run` runs it."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import ModuleType

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from charjax.config import ModelConfig
from charjax.errors import InputError
from charjax.model.cells import CELLS
from charjax.model.recurrence.base import Layer, Operands, Result
from charjax.model.recurrence.resolution import Resolution

# Values of `model.recurrence`. A module is imported on first use, since Pallas loads slowly.
_MODULES = {
    "c": "charjax.model.recurrence.c.ops",
    "persistent": "charjax.model.recurrence.pallas_hopper.ops",
    "xla": "charjax.model.recurrence.xla",
    "parallel": "charjax.model.recurrence.parallel",
    "scan": "charjax.model.recurrence.scan",
}
# What "fast" tries in turn on a platform, the fastest first. The last one supports every layer.
_FAST = {"cpu": ("c", "xla"), "gpu": ("persistent", "xla")}
_FAST_ELSEWHERE = ("xla",)
_FAST_WITHOUT_RECURRENT_KERNEL = ("parallel",)
_FAST_MOGRIFIER = ("scan",)


def resolve(config: ModelConfig, batch: int, *, saved: str = "", strict: bool = True) -> Resolution:
    """Chooses the implementation that runs a model's recurrence; nothing else decides it.

    Args:
      config: the model. A `recurrence` of "fast" stands for the first implementation that
        supports the model here; any other value names the implementation.
      batch: number of sequences on each device.
      saved: the implementation that a saved run used, which this version may lack; "fast" tries
        it first. "": none.
      strict: whether to raise if the named implementation does not support the model; without
        it the choice is then that of "fast".

    Raises:
      InputError: with `strict`, the named implementation does not support the model here.
    """
    layer = Layer(config.cell, config.hidden, config.dtype, batch)
    preferred = saved if config.recurrence == "fast" else config.recurrence
    fast = _FAST.get(jax.default_backend(), _FAST_ELSEWHERE)
    if not CELLS[config.cell].has_recurrent_kernel:
        fast = _FAST_WITHOUT_RECURRENT_KERNEL
    elif CELLS[config.cell].rounds:
        fast = _FAST_MOGRIFIER
    refusals: list[str] = []
    for name in dict.fromkeys([preferred, *fast] if preferred else fast):
        refusal = _refusal(name, layer)
        if not refusal:
            return Resolution(name, _reason(config.recurrence, saved, name, refusals))
        if strict and name == config.recurrence:
            raise InputError(
                f"config.model.recurrence={name}: {refusal}; take --config.model.recurrence=fast"
            )
        refusals.append(f"{name} refuses: {refusal}")
    raise AssertionError('the last that "fast" tries supports every layer')


def for_inference(config: ModelConfig, batch: int) -> ModelConfig:
    """The config of a trained model with an implementation of the recurrence that runs here.

    It is the one that the config names if that supports the model here, else what "fast" chooses.

    Args:
      config: the trained model.
      batch: number of sequences on each device.
    """
    return replace(config, recurrence=resolve(config, batch, strict=False).implementation)


def run(implementation: str, cell: str, dtype: DTypeLike, operands: Operands) -> Result:
    """Runs one layer over a sequence.

    Args:
      implementation: from `resolve`.
      cell: a name in `charjax.model.cells.CELLS`.
      dtype: of the matmul operands; accumulation, gates and carry are float32.
      operands: what the layer reads.

    Returns:
      The outputs, float32 [hidden, time, batch], and the carry after the last position. Without
      positions they are empty, and the carry is the one before them.
    """
    positions, carry = operands.inputs.time_and_batch, operands.carry
    if 0 in positions:
        return jnp.zeros((carry[0].shape[1], *positions)), carry
    return _implementation(implementation).run(cell, dtype, operands)


def _refusal(name: str, layer: Layer) -> str:
    """Why an implementation cannot run a layer here; "" if it can."""
    if name not in _MODULES:  # of a run of another version
        return "this version has no such implementation"
    return _implementation(name).supports(layer)


def _implementation(name: str) -> ModuleType:
    return importlib.import_module(_MODULES[name])


def _reason(requested: str, saved: str, chosen: str, refusals: list[str]) -> str:
    if refusals:
        return "; ".join(refusals)
    if chosen == requested:
        return "as the config says"
    return "as the saved run" if chosen == saved else "the fastest here"
