"""The network's state: zeros at first, and reset where a document starts."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from charjax.config import ModelConfig, check_model_limits
from charjax.model.cells import CELLS
from charjax.schema import check_integer
from charjax.types import Carry, Reset, Resets, Tokens


def initial_carry(config: ModelConfig, batch: int) -> Carry:
    """The carry before any text: float32 zeros.

    No two leaves share a buffer, so that all of them can be donated to a jitted step.

    Raises:
      InputError: a field of the config is outside its limits, or `batch` is no number of sequences.
    """
    check_model_limits(config)
    batch = check_integer("batch", batch, 0)
    states = CELLS[config.cell].states
    return tuple(
        tuple(jnp.zeros((batch, config.hidden), jnp.float32) for _ in range(states))
        for _ in range(config.layers)
    )


def reset_carry(carry: Carry, reset: Reset) -> Carry:
    """The carry with zeros for the sequences where `reset` is true."""
    return jax.tree.map(lambda c: jnp.where(reset[:, None], 0.0, c), carry)


def document_resets(tokens: Tokens, boundary_id: int | None) -> Resets | None:
    """Where documents start: the positions that read the boundary, see `Vocab.boundary_id`.

    A document's first character is predicted from the boundary and a zero carry, in whichever
    row and at whichever position it stands.
    """
    return None if boundary_id is None else tokens == boundary_id
