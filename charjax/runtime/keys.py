"""Random keys as a pure function of (seed, stream, index): law 1.

Nothing in charjax splits a key and carries the rest along. Whatever needs
randomness names its stream and its index (a step, a sample, a position), so
that the draw does not depend on what ran before it.
"""

from __future__ import annotations

import enum

import jax

from charjax.types import Count, PRNGKey


class Stream(enum.IntEnum):
    """The independent uses of randomness. Never renumber: seeds would change meaning."""

    INIT = 0
    DROPOUT = 1
    SAMPLE = 2
    SCHEDULED = 3


def stream_key(seed: int, stream: Stream) -> PRNGKey:
    """The root key of one stream of a seed."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), stream)


def indexed_key(key: PRNGKey, index: int | Count) -> PRNGKey:
    """The key of one index (step, sample or position) of a stream."""
    return jax.random.fold_in(key, index)
