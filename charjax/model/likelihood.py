"""What a model thought of a text: the loss of every character, in nats."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from charjax.types import Logits, Nats, Tokens


def next_char_nats(logits: Logits, targets: Tokens) -> Nats:
    """Negative log-probability of each target in nats, float32 [batch, time]."""
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
