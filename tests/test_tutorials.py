"""The tutorials' configs: sizes as their authors print them, without their texts."""

from __future__ import annotations

import math
import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from charjax.conditions import from_config_dict
from charjax.data.batches import TokenSplit, make_batches
from charjax.errors import InputError
from charjax.model.network import init_params, parameter_count
from charjax.runtime.keys import Stream, stream_key

FOLDER = Path(__file__).parent.parent / "configs" / "tutorials"
# Characters of the text, vocabulary size, parameters, windows, steps per epoch.
NUMBERS = {
    "tf_lstm": (1_115_394, 65, 5_330_241, 11_043, 172),
    "tf_gru": (1_115_394, 66, 4_022_850 - 2 * 1024, 11_043, 172),
    "nietzsche": (600_893, 57, 102_585, 200_278, 1565),
    "grimm": (266_073, 70, 1_628_742, 5_217, 82),
}


def config_of(name: str, variant: str = ""):
    return from_config_dict(runpy.run_path(str(FOLDER / f"{name}.py"))["get_config"](variant))


def variants(name: str) -> list[str]:
    with pytest.raises(InputError) as refused:
        config_of(name, "?")
    return re.sub(".*one of ", "", str(refused.value)).split(", ")


@pytest.mark.parametrize("name", NUMBERS)
def test_the_plain_config_has_the_sizes_of_the_tutorial(name):
    chars, vocab_size, parameters, windows, steps = NUMBERS[name]
    config = config_of(name)
    key = stream_key(0, Stream.INIT)
    params = jax.eval_shape(lambda: init_params(config.model, vocab_size, key))
    assert parameter_count(params) == parameters
    batches = make_batches(
        config.data, TokenSplit(np.zeros(chars, np.int32), np.array([0])), seed=0
    )
    assert batches.num_sequences == windows
    assert batches.steps_per_epoch == steps


@pytest.mark.parametrize("name", NUMBERS)
def test_no_variant_takes_more_steps_than_the_tutorial(name):
    chars = NUMBERS[name][0]

    def steps(variant: str) -> int:
        config = config_of(name, variant)
        ids = np.zeros(int(chars * config.data.split[0]), np.int32)
        batches = make_batches(config.data, TokenSplit(ids, np.array([0])), seed=0)
        return math.ceil(config.train.max_epochs * batches.steps_per_epoch)

    assert all(steps(variant) <= steps("") for variant in variants(name))


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.py")))
def test_every_variant_is_valid_and_has_a_validation_split(name):
    assert {"held_out", "better"} <= set(variants(name))
    assert config_of(name).data.split == (1.0, 0.0, 0.0)
    for variant in variants(name):
        assert config_of(name, variant).data.split[1] > 0


def test_a_grimm_epoch_ends_with_its_33_windows():
    config = config_of("grimm")
    batches = make_batches(
        config.data, TokenSplit(np.zeros(266_073, np.int32), np.array([0])), seed=0
    )
    assert batches(81).mask.any(axis=1).sum() == 33
