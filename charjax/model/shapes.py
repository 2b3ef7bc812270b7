"""The shapes of a network's parameters, known without building it and without JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from charjax.config import CELL_SIZES, ModelConfig, check_model_limits
from charjax.errors import InputError
from charjax.schema import leaves


def param_shapes(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a `CharRNN`, by its path in a checkpoint.

    Args:
      config: the architecture.
      vocab_size: number of tokens.
    """
    cell, hidden = CELL_SIZES[config.cell], config.hidden
    inputs, columns = config.embed or vocab_size, cell.gates * hidden
    shapes: dict[str, tuple[int, ...]] = {
        "output_kernel": (hidden, vocab_size),
        "output_bias": (vocab_size,),
    }
    if config.embed:
        shapes["embedding"] = (vocab_size, config.embed)
    for layer in range(config.layers):
        name, features = f"layer_{layer}", inputs if layer == 0 else hidden
        shapes[f"{name}/kernel"] = (features, columns)
        shapes[f"{name}/bias"] = (columns,)
        if cell.has_recurrent_kernel:
            shapes[f"{name}/recurrent/kernel"] = (hidden, columns)
        if cell.reset_after:
            shapes[f"{name}/recurrent/bias"] = (hidden,)
        for number in range(cell.rounds):
            gating_input, gating_state = (hidden, features), (features, hidden)
            shapes[f"{name}/round_{number}_kernel"] = gating_state if number % 2 else gating_input
    return shapes


def check_params(
    config: ModelConfig, params: Mapping[str, Any], vocab_size: int | None = None
) -> int:
    """Checks that parameters are those of a `CharRNN`: flax would ignore what it does not read.

    Args:
      config: the architecture.
      params: nested mappings of arrays.
      vocab_size: number of tokens; None: as many as the parameters have.

    Returns:
      The number of tokens.

    Raises:
      InputError: an array is missing, has another shape, or is one too many; or a field of the
        config is outside its limits.
    """
    check_model_limits(config)
    if not isinstance(params, Mapping):
        raise InputError(f"params of type {type(params).__name__}: must be mappings of arrays")
    found = {name.replace(".", "/"): np.shape(leaf) for name, leaf in leaves(params)}
    if vocab_size is None:
        vocab_size = (found.get("output_bias") or (0,))[0]
    wanted = param_shapes(config, vocab_size)
    for name in wanted | found:
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"params: {name} is {found.get(name, 'missing')}, but must be "
                f"{wanted.get(name, 'left out')} for {config.summary} and {vocab_size} tokens; "
                "take the config that they were made with"
            )
    return vocab_size
