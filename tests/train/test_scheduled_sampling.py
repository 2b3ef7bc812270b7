"""Scheduled sampling: no guesses at share 0, all at share 1, and they are the model's own."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.config import ModelConfig, TrainConfig
from charjax.data.dataset import load_dataset
from charjax.errors import InputError
from charjax.model.network import CharRNN, init_params, initial_carry
from charjax.runtime.keys import Stream, stream_key
from charjax.train.resume import check_same_run, describe
from charjax.train.scheduled_sampling import mix_inputs, sampling_rate
from charjax.types import PyTree

from .tiny import LANES, VOCAB, assert_same_bits, config_of, first_state, jitted, random_batch

CELLS = ["gru", "lstm", "rnn"]
_mix = jax.jit(mix_inputs, static_argnums=0)


@functools.cache
def _params(model: ModelConfig, seed: int) -> PyTree:
    return init_params(model, VOCAB, stream_key(seed, Stream.INIT))


def mixed(model, share: float, *, seed: int = 0, params=None) -> tuple[np.ndarray, np.ndarray]:
    """(true inputs, mixed inputs) of the first random batch."""
    params = params or _params(model, 0)
    inputs = random_batch(0).inputs
    keys = jax.random.split(stream_key(seed, Stream.SCHEDULED), LANES)
    carry = initial_carry(model, LANES)
    out = _mix(model, params, jnp.asarray(inputs), carry, keys, jnp.float32(share))
    return inputs, np.asarray(out)


@pytest.mark.parametrize("cell", CELLS)
def test_with_no_share_the_text_stays_as_it_is(cell):
    inputs, out = mixed(config_of(model={"cell": cell}).model, 0.0)
    np.testing.assert_array_equal(out, inputs)


@pytest.mark.parametrize("cell", CELLS)
def test_with_the_whole_share_every_input_but_the_first_is_a_likely_guess(cell):
    """A model that is certain guesses what its own logits say of the mixed text."""
    model = config_of(model={"cell": cell}).model
    params = _params(model, 3)
    params = {**params, "output_kernel": 1e6 * params["output_kernel"]}
    inputs, out = mixed(model, 1.0, params=params)
    np.testing.assert_array_equal(out[:, 0], inputs[:, 0])
    logits, _ = CharRNN(model, VOCAB).run(params, jnp.asarray(out), initial_carry(model, LANES))
    np.testing.assert_array_equal(out[:, 1:], np.argmax(logits, axis=-1)[:, :-1])


def test_about_the_share_of_inputs_is_guessed():
    model = config_of().model
    draws = [mixed(model, 0.5, seed=seed) for seed in range(40)]
    changed = np.mean([(inputs != out)[:, 1:] for inputs, out in draws])
    # A guess is the true character one time in VOCAB.
    assert changed == pytest.approx(0.5 * (1 - 1 / VOCAB), abs=0.04)


def test_the_share_rises_from_nothing_and_then_stays():
    train = TrainConfig(scheduled_sampling=0.4, scheduled_ramp=10, max_steps=1)
    shares = [float(sampling_rate(train, jnp.int32(step))) for step in (0, 5, 10, 1000)]
    assert shares == pytest.approx([0, 0.2, 0.4, 0.4])


PLAIN = config_of()
OWN = config_of(train={"scheduled_sampling": 1.0, "scheduled_ramp": 1})


def test_the_first_step_is_that_of_plain_training_and_later_ones_are_not():
    state = first_state(PLAIN)
    one, other = (jitted(config)(state, random_batch(0)) for config in (PLAIN, OWN))
    assert_same_bits(one, other)
    later = state._replace(step=jnp.int32(1))
    one, other = (jitted(config)(later, random_batch(0)) for config in (PLAIN, OWN))
    assert one[1].loss != other[1].loss


def test_the_targets_stay_true():
    """Guesses are read, never learnt: a batch's loss counts the true next characters."""
    state = first_state(PLAIN)
    # Zero weights on the way in: what is read cannot matter, what is wanted must.
    blank = {**state.params, "embedding": jnp.zeros_like(state.params["embedding"])}
    state = state._replace(params=blank, step=jnp.int32(5))
    own, true = (float(jitted(config)(state, random_batch(0))[1].loss) for config in (OWN, PLAIN))
    assert own == pytest.approx(true, rel=1e-6)


def test_a_run_is_not_continued_with_another_schedule(tmp_path, text_file):
    data = {"path": str(text_file)}
    config, changed = (
        config_of(data=data, train={"scheduled_sampling": share}) for share in (0.5, 0.25)
    )
    text = load_dataset(config)
    with pytest.raises(InputError, match=r"config.train.scheduled_sampling was 0.5, now 0.25"):
        check_same_run(tmp_path, describe(config, text, 0), changed, text, allow=())
