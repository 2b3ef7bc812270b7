"""Invariant 1: keys are a function of (seed, stream, index), in every version."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from charjax.errors import InputError
from charjax.runtime.keys import Stream, indexed_key, stream_key

# seed, stream, index -> the two words of the key.
GOLDEN = {
    (0, Stream.INIT, 0): (4165894930, 804218099),
    (0, Stream.DROPOUT, 7): (3820244711, 2120015096),
    (42, Stream.SAMPLE, 10**9): (1015727331, 1472874709),
    (2**32 - 1, Stream.SAMPLE, 1): (1125366651, 1756191250),
}


def words(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_keys_never_change():
    got = {at: words(indexed_key(stream_key(*at[:2]), at[2])) for at in GOLDEN}
    assert got == GOLDEN, (
        "the keys differ from those of earlier versions, and with them the texts of every seed. "
        "Restore the derivation or, if JAX changed, say so in the changelog and "
        "update these numbers"
    )


@pytest.mark.parametrize(
    ("setting", "value"), [("threefry_partitionable", False), ("random_seed_offset", 5)]
)
def test_a_setting_that_would_change_the_numbers_of_every_seed_is_refused(setting, value):
    name = f"jax_{setting}"
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        with pytest.raises(InputError, match=f"^{name.upper()}={value}: "):
            stream_key(1, Stream.INIT)
    finally:
        jax.config.update(name, before)


def test_stream_numbers_never_change():
    assert {stream.name: stream.value for stream in Stream} == {
        "INIT": 0,
        "DROPOUT": 1,
        "SAMPLE": 2,
        "SCHEDULED": 3,
        "WEIGHT_DROPOUT": 4,
    }


def test_keys_of_different_seeds_streams_and_indices_differ():
    seeds, indices = (0, 1, 2, 2**31, 2**32 - 1), (0, 1, 2, 10**9)
    keys = {
        words(indexed_key(stream_key(seed, stream), index))
        for seed, stream, index in itertools.product(seeds, Stream, indices)
    }
    assert len(keys) == len(seeds) * len(Stream) * len(indices)


def test_a_traced_index_gives_the_same_key():
    key = stream_key(7, Stream.DROPOUT)
    assert words(jax.jit(indexed_key)(key, 5)) == words(indexed_key(key, 5))
