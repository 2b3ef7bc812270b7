"""Random keys as a pure function of (seed, stream, index): invariant 1 of CONTRIBUTING.md.

No key is split and carried along. Whatever needs randomness folds its stream and its index (a step,
a sample, a position) into the seed's key, so that a draw does not depend on the draws before it.
"""

from __future__ import annotations

import enum

import jax
from jaxtyping import Array, UInt32

from charjax.errors import InputError
from charjax.types import Count, PRNGKey

# What would change all random numbers, and must have its default.
_SETTINGS = {"jax_threefry_partitionable": True, "jax_random_seed_offset": 0}


class Stream(enum.IntEnum):
    """The independent uses of randomness. Never renumber them: every seed's draws would change."""

    INIT = 0
    DROPOUT = 1
    SAMPLE = 2
    SCHEDULED = 3
    WEIGHT_DROPOUT = 4


def stream_key(seed: int | UInt32[Array, ""], stream: Stream) -> PRNGKey:
    """The root key of a stream: threefry, so that it is the same on every platform.

    Raises:
      InputError: a setting of JAX would change the random numbers of every seed.
    """
    for name, default in _SETTINGS.items():
        if (value := getattr(jax.config, name)) != default:
            raise InputError(
                f"{name.upper()}={value}: changes the random numbers of every seed; unset it"
            )
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), stream)


def indexed_key(key: PRNGKey, index: int | Count) -> PRNGKey:
    """The key of one index (step, sample or position) of a stream."""
    return jax.random.fold_in(key, index)
