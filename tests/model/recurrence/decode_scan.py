"""The sampling loop as a scan: the reference of the persistent kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from charjax.model.decode import decode_step


def scan(config, weights, state, igates, forced, noise):
    """What `decode` returns, by `decode_step`."""

    def advance(loop, xs):
        (igates, state), (given, added) = loop, xs
        logits, state = decode_step(config, weights, igates, state)
        token = jnp.where(given >= 0, given, jnp.argmax(logits + added, axis=1))
        return (weights.lookup(token), state), token

    (_, state), tokens = jax.lax.scan(advance, (igates, state), (forced, noise))
    return tokens, state
