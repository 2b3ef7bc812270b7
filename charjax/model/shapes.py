"""The shapes of a network's parameters, known without building it and without JAX."""

from __future__ import annotations

from charjax.config import CELL_SIZES, ModelConfig


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
