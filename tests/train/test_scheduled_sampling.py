"""Scheduled sampling: no sampled inputs at rate 0, only the model's own at rate 1."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.config import ModelConfig, TrainConfig
from charjax.model.carry import document_resets, initial_carry
from charjax.model.network import init_params
from charjax.runtime.keys import Stream, stream_key
from charjax.train.scheduled_sampling import mix_inputs, sampling_rate
from charjax.types import PyTree
from tests.model.small import apply

from .tiny import BATCH, VOCAB, assert_same_bits, config_of, first_state, jitted, random_batch

CELLS = ["gru", "lstm", "rnn"]
_mix = jax.jit(mix_inputs, static_argnums=(0, 6))


@functools.cache
def _params(model: ModelConfig, seed: int) -> PyTree:
    return init_params(model, VOCAB, stream_key(seed, Stream.INIT))


def mixed(model, rate: float, *, seed: int = 0, params=None) -> tuple[np.ndarray, np.ndarray]:
    """(true inputs, mixed inputs) of the first random batch."""
    params = params or _params(model, 0)
    inputs = random_batch(0).inputs
    keys = jax.random.split(stream_key(seed, Stream.SCHEDULED), BATCH)
    carry = initial_carry(model, BATCH)
    out = _mix(model, params, jnp.asarray(inputs), carry, keys, jnp.float32(rate))
    return inputs, np.asarray(out)


@pytest.mark.parametrize("cell", CELLS)
def test_at_rate_0_the_inputs_stay(cell):
    inputs, out = mixed(config_of(model={"cell": cell}).model, 0.0)
    np.testing.assert_array_equal(out, inputs)


@pytest.mark.parametrize("cell", CELLS)
def test_at_rate_1_every_input_but_the_first_is_sampled(cell):
    """A model that is certain samples the argmax of its logits for the mixed text."""
    model = config_of(model={"cell": cell}).model
    params = _params(model, 3)
    params = {**params, "output_kernel": 1e6 * params["output_kernel"]}
    inputs, out = mixed(model, 1.0, params=params)
    np.testing.assert_array_equal(out[:, 0], inputs[:, 0])
    logits, _ = apply(model, params, jnp.asarray(out), initial_carry(model, BATCH))
    np.testing.assert_array_equal(out[:, 1:], np.argmax(logits, axis=-1)[:, :-1])


@pytest.mark.parametrize("cell", CELLS)
def test_documents_start_where_they_do_in_the_true_inputs(cell):
    model, boundary_id = config_of(model={"cell": cell}).model, 3
    # A model that is certain, most of all of the boundary.
    params = _params(model, 3)
    params = {**params, "output_kernel": 1e6 * params["output_kernel"]}
    params["output_bias"] = params["output_bias"].at[boundary_id].set(1e9)
    carry = jax.tree.map(lambda part: part + 0.7, initial_carry(model, BATCH))
    inputs = jnp.asarray(random_batch(0).inputs).at[0, 0].set(boundary_id)
    keys = jax.random.split(stream_key(0, Stream.SCHEDULED), BATCH)
    out = _mix(model, params, inputs, carry, keys, jnp.float32(1), boundary_id)
    np.testing.assert_array_equal(out == boundary_id, inputs == boundary_id)
    logits, _ = apply(model, params, out, carry, resets=document_resets(out, boundary_id))
    sampled = np.argmax(logits.at[..., boundary_id].set(-np.inf), axis=-1)[:, :-1]
    is_sampled = np.asarray(out != boundary_id)[:, 1:]
    np.testing.assert_array_equal(out[:, 1:][is_sampled], sampled[is_sampled])


def test_inputs_are_sampled_at_the_rate():
    model = config_of().model
    draws = [mixed(model, 0.5, seed=seed) for seed in range(40)]
    changed = np.mean([(inputs != out)[:, 1:] for inputs, out in draws])
    # One sample in VOCAB is the true character.
    assert changed == pytest.approx(0.5 * (1 - 1 / VOCAB), abs=0.04)


def test_the_rate_rises_linearly_from_0_and_then_stays():
    train = TrainConfig(scheduled_sampling=0.4, scheduled_ramp=10, max_steps=1)
    rates = [float(sampling_rate(train, jnp.int32(step))) for step in (0, 5, 10, 1000)]
    assert rates == pytest.approx([0, 0.2, 0.4, 0.4])
    with jax.enable_x64(True):  # else other inputs would be drawn
        assert sampling_rate(train, jnp.int32(5)).dtype == jnp.float32


PLAIN = config_of()
SAMPLED = config_of(train={"scheduled_sampling": 1.0, "scheduled_ramp": 1})


def test_the_first_step_is_that_of_plain_training_and_later_ones_are_not():
    state = first_state(PLAIN)
    one, other = (jitted(config)(state, random_batch(0)) for config in (PLAIN, SAMPLED))
    assert_same_bits(one, other)
    later = state._replace(step=jnp.int32(1))
    one, other = (jitted(config)(later, random_batch(0)) for config in (PLAIN, SAMPLED))
    assert one[1].loss != other[1].loss


def test_targets_are_never_sampled():
    state = first_state(PLAIN)
    # With a zero embedding only the targets matter.
    blank = {**state.params, "embedding": jnp.zeros_like(state.params["embedding"])}
    state = state._replace(params=blank, step=jnp.int32(5))
    sampled, true = (
        float(jitted(config)(state, random_batch(0))[1].loss) for config in (SAMPLED, PLAIN)
    )
    assert sampled == pytest.approx(true, rel=1e-6)
