"""Dropout on parameters: which entries it drops, how many, and that what is kept is scaled."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from charjax.config import ModelConfig
from charjax.model.weight_dropout import drop_weights

from .small import params_of

VOCAB = 40
NONE = ModelConfig(cell="lstm", hidden=32, embed=8, layers=2)
BOTH = replace(NONE, dropout_recurrent=0.3, dropout_embed=0.5)
EMBEDDING = "embedding"
KERNELS = ("layer_0/recurrent/kernel", "layer_1/recurrent/kernel")


def flat(tree) -> dict[str, np.ndarray]:
    return flatten_dict(jax.device_get(tree), sep="/")


def dropped(config: ModelConfig, key: int = 0) -> dict[str, np.ndarray]:
    return flat(drop_weights(config, params_of(NONE, VOCAB), jax.random.key(key)))


def test_without_rates_no_parameter_changes():
    params = params_of(NONE, VOCAB)
    assert drop_weights(NONE, params, jax.random.key(0)) == params


def test_only_recurrent_kernels_and_the_embedding_change():
    before, after = flat(params_of(NONE, VOCAB)), dropped(BOTH)
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {EMBEDDING, *KERNELS}


@pytest.mark.parametrize(("name", "rate"), [*((k, 0.3) for k in KERNELS), (EMBEDDING, 0.5)])
def test_an_entry_is_dropped_or_divided_by_the_probability_to_be_kept(name, rate):
    before, after = flat(params_of(NONE, VOCAB))[name], dropped(BOTH)[name]
    kept = after != 0
    np.testing.assert_allclose(after[kept], before[kept] / (1 - rate), rtol=1e-6)
    tolerance = 4 * np.sqrt(rate * (1 - rate) / (len(kept) if name == EMBEDDING else kept.size))
    assert abs(1 - kept.mean() - rate) < tolerance


def test_the_embedding_loses_whole_tokens():
    kept = dropped(BOTH)[EMBEDDING] != 0
    assert (kept.all(axis=1) | (~kept).all(axis=1)).all()
    assert 0 < kept.all(axis=1).sum() < VOCAB


def test_each_layer_and_each_key_has_other_masks():
    first, second = (dropped(BOTH)[name] != 0 for name in KERNELS)
    other_key = dropped(BOTH, key=1)[KERNELS[0]] != 0
    # Two masks that keep 70 % agree on 58 % of the entries.
    assert (first == second).mean() < 0.65
    assert (first == other_key).mean() < 0.65


def test_the_two_entries_of_a_random_word_are_independent():
    upper, lower = np.split(dropped(BOTH)[KERNELS[0]] != 0, 2)
    # Two masks that keep 70 % agree on 58 % of the entries.
    assert abs((upper == lower).mean() - 0.58) < 4 * np.sqrt(0.58 * 0.42 / upper.size)
