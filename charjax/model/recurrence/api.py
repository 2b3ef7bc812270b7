"""The recurrence as one operation: `resolve` chooses an implementation, `run` runs it."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

from jax.typing import DTypeLike

from charjax.config import ModelConfig
from charjax.errors import InputError
from charjax.model.recurrence.base import Inputs, Layer, Outputs, Weights
from charjax.types import LayerCarry

# By the name that `model.recurrence` has for it. Imported when it is asked: Pallas takes a while.
_MODULES = {
    "c": "charjax.model.recurrence.c.ops",
    "persistent": "charjax.model.recurrence.pallas_hopper.ops",
    "xla": "charjax.model.recurrence.xla",
    "scan": "charjax.model.recurrence.scan",
}
# What "fast" tries, the fastest first. The last one supports everything.
_FAST = ("c", "xla")


class Resolution(NamedTuple):
    """Which implementation runs a layer, and why.

    Attributes:
      implementation: "c", "persistent", "xla" or "scan".
      reason: for people, such as "xla: c refuses: no C compiler (cc)".
    """

    implementation: str
    reason: str


def resolve(config: ModelConfig, batch: int, *, saved: str = "", strict: bool = True) -> Resolution:
    """The implementation that runs the recurrence of a model: the one place that decides it.

    Args:
      config: the model. A `recurrence` of "fast" is the first that supports it; any other
        name is that implementation.
      batch: sequences on each device.
      saved: the implementation that a run was saved with, which "fast" then tries first.
      strict: refuse a model that the named implementation does not support; otherwise take
        what "fast" takes, as inference does on another machine than the training's.

    Raises:
      InputError: the named implementation does not support this model here.
    """
    layer = Layer(config.cell, config.hidden, config.dtype, batch)
    preferred = saved if config.recurrence == "fast" else config.recurrence
    refusals: list[str] = []
    for name in dict.fromkeys([preferred, *_FAST] if preferred else _FAST):
        refusal: str = _implementation(name).supports(layer)
        if not refusal:
            return Resolution(name, _reason(config.recurrence, saved, name, refusals))
        if strict and name == config.recurrence:
            raise InputError(
                f"config.model.recurrence={name}: {refusal}; take --config.model.recurrence=fast"
            )
        refusals.append(f"{name} refuses: {refusal}")
    raise AssertionError("the last of _FAST supports every layer")


def for_inference(config: ModelConfig, batch: int) -> ModelConfig:
    """The model with the implementation that reads text with it here.

    The one that it was trained with where that runs here, else what "fast" takes.

    Args:
      config: the model as it was trained.
      batch: sequences on each device.
    """
    return replace(config, recurrence=resolve(config, batch, strict=False).implementation)


def run(
    implementation: str,
    cell: str,
    dtype: DTypeLike,
    inputs: Inputs,
    weights: Weights,
    carry: LayerCarry,
) -> tuple[Outputs, LayerCarry]:
    """One layer over a sequence.

    Args:
      implementation: of `resolve`.
      cell: a name in `CELLS`.
      dtype: of the matmul operands; sums, gates and state are float32.
      inputs: the input gates.
      weights: the recurrent parameters.
      carry: the state before the first character, float32 [batch, hidden] each.

    Returns:
      The outputs, float32 [hidden, time, batch], and the carry after the last character.
    """
    result: tuple[Outputs, LayerCarry] = _implementation(implementation).run(
        cell, dtype, inputs, weights, carry
    )
    return result


def _implementation(name: str) -> ModuleType:
    return importlib.import_module(_MODULES[name])


def _reason(asked: str, saved: str, taken: str, refusals: list[str]) -> str:
    if refusals:
        return "; ".join(refusals)
    if taken == asked:
        return "as the config says"
    return "as the run was saved with" if taken == saved else "the fastest here"
