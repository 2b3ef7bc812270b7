"""The sampling loop as a scan: the reference of the persistent kernel; and parts of its work."""

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


def rows_of(given, rows):
    """The first rows of the arguments of `scan` after the config."""
    weights, state, igates, forced, noise = given
    state = jax.tree.map(lambda leaf: leaf[:rows], state)
    return weights, state, igates[:rows], forced[:, :rows], noise[:, :rows]


def steps_of(given, steps):
    """The same for some of the steps, the state and the first token unchanged."""
    *others, forced, noise = given
    return *others, forced[steps], noise[steps]
