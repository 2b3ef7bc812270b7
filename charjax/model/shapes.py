"""The shapes of a network's parameters, known without building it."""

from __future__ import annotations

from charjax.config import ModelConfig
from charjax.model.cells import CELLS


def param_shapes(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a `CharRNN`, by its path in a checkpoint."""
    cell, hidden = CELLS[config.cell], config.hidden
    gates, inputs = cell.gates * hidden, config.embed or vocab_size
    shapes: dict[str, tuple[int, ...]] = {
        "output_kernel": (hidden, vocab_size),
        "output_bias": (vocab_size,),
    }
    if config.embed:
        shapes["embedding"] = (vocab_size, config.embed)
    for layer in range(config.layers):
        name = f"layer_{layer}"
        shapes[f"{name}/kernel"] = (inputs if layer == 0 else hidden, gates)
        shapes[f"{name}/bias"] = (gates,)
        shapes[f"{name}/recurrent/kernel"] = (hidden, gates)
        if cell.reset_after:
            shapes[f"{name}/recurrent/bias"] = (hidden,)
    return shapes
