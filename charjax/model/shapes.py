"""The shapes of a network's parameters, known without building it and without JAX."""

from __future__ import annotations

from charjax.config import ModelConfig


def param_shapes(
    config: ModelConfig,
    vocab_size: int,
    *,
    gates: int,
    reset_after: bool,
    has_recurrent_kernel: bool,
    rounds: int,
) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a `CharRNN`, by its path in a checkpoint.

    Args:
      config: the architecture.
      vocab_size: number of tokens.
      gates: the cell's number of gates.
      reset_after: whether the cell has `reset_after`, see `charjax.model.cells.Cell`.
      has_recurrent_kernel: false for a cell with `coefficients`.
      rounds: the cell's number of rounds.
    """
    hidden, inputs = config.hidden, config.embed or vocab_size
    columns = gates * hidden
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
        if has_recurrent_kernel:
            shapes[f"{name}/recurrent/kernel"] = (hidden, columns)
        if reset_after:
            shapes[f"{name}/recurrent/bias"] = (hidden,)
        for number in range(rounds):
            gating_input, gating_state = (hidden, features), (features, hidden)
            shapes[f"{name}/round_{number}_kernel"] = gating_state if number % 2 else gating_input
    return shapes
