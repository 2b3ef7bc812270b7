"""The network is the equations; a chunk's carry is all that the next chunk needs (law 3)."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.config import ModelConfig
from charjax.model.cells import CELLS
from charjax.model.likelihood import next_char_nats
from charjax.model.network import (
    CharRNN,
    init_params,
    initial_carry,
    parameter_count,
    reset_carry,
)
from tests.model import reference
from tests.model.small import apply, carry_of, distance, float64, params_of, tokens_of

VOCAB, BATCH, TIME = 7, 3, 8
CONFIGS = {cell: ModelConfig(cell=cell, hidden=5, layers=2, embed=4) for cell in CELLS}


def inputs(config):
    return params_of(config, VOCAB), tokens_of(VOCAB, BATCH, TIME), carry_of(config, BATCH)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("embed", [0, 4])
def test_it_is_the_float64_network(cell, embed):
    config = replace(CONFIGS[cell], embed=embed)
    params, tokens, carry = inputs(config)
    got = apply(config, params, tokens, carry)
    want = reference.network(config, float64(params), np.asarray(tokens), float64(carry))
    assert distance(got, want) < 1e-5


@pytest.mark.parametrize("cell", CELLS)
def test_two_chunks_with_the_carry_between_are_the_whole(cell):
    config = CONFIGS[cell]
    params, tokens, carry = inputs(config)
    whole = apply(config, params, tokens, carry)
    first, between = apply(config, params, tokens[:, : TIME // 2], carry)
    second, last = apply(config, params, tokens[:, TIME // 2 :], between)
    assert distance((jnp.concatenate([first, second], 1), last), whole) < 1e-6


@pytest.mark.parametrize("cell", CELLS)
def test_logits_depend_on_the_past_alone(cell):
    config = CONFIGS[cell]
    params, tokens, carry = inputs(config)
    before, _ = apply(config, params, tokens, carry)
    for t in (0, 3, TIME - 1):
        changed = tokens.at[:, t].set((tokens[:, t] + 1) % VOCAB)
        after, _ = apply(config, params, changed, carry)
        differs = np.any(before != after, axis=2)
        assert not differs[:, :t].any()
        assert differs[:, t:].all()


def test_gradients_come_from_the_past_alone():
    config = replace(CONFIGS["gru"], embed=6)
    tokens = jnp.arange(TIME)[None]  # every character once: a row of the embedding is a position
    params, carry = params_of(config, TIME), carry_of(config, 1)

    def logits_at(params):
        return CharRNN(config, TIME).run(params, tokens, carry)[0].sum(2)[0]

    grads = jax.jit(jax.jacrev(logits_at))(params)["embedding"]
    reached = np.any(grads != 0, axis=2)  # [position of the logits, position of the character]
    np.testing.assert_array_equal(reached, np.tri(TIME, dtype=bool))


def test_a_lane_does_not_see_the_others():
    config = CONFIGS["lstm"]
    params, tokens, carry = inputs(config)
    before, _ = apply(config, params, tokens, carry)
    after, _ = apply(config, params, tokens.at[1:].set(0), carry)
    np.testing.assert_array_equal(before[0], after[0])
    assert np.any(before[1:] != after[1:])


def test_last_only_is_the_last_position():
    config = CONFIGS["gru"]
    params, tokens, carry = inputs(config)
    logits, last = apply(config, params, tokens, carry)
    got = apply(config, params, tokens, carry, last_only=True)
    assert got[0].shape == (BATCH, 1, VOCAB)
    assert distance(got, (logits[:, -1:], last)) < 1e-6


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("recurrence", ["fast", "scan"])
def test_bfloat16_is_for_products_alone(cell, recurrence):
    config = replace(CONFIGS[cell], dtype="bfloat16", recurrence=recurrence)
    params = jax.eval_shape(lambda: init_params(config, VOCAB, jax.random.key(0)))
    out = jax.eval_shape(
        CharRNN(config, VOCAB).run,
        params,
        tokens_of(VOCAB, BATCH, TIME),
        initial_carry(config, BATCH),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((params, out))} == {jnp.dtype(jnp.float32)}


UNITS, LANES, RATE = 64, 32, 0.4
OUTPUT = ModelConfig(cell="rnn", hidden=UNITS, embed=4, dropout=RATE)


@functools.cache
def outputs(config, lanes=LANES, first_key=None):
    """The last layer's outputs [lanes, time, units] as dropout leaves them."""
    params = params_of(config, UNITS)
    params |= {"output_kernel": jnp.eye(UNITS), "output_bias": jnp.zeros(UNITS)}
    tokens = tokens_of(UNITS, 1, TIME).repeat(lanes, 0)
    keys = None
    if first_key is not None:
        keys = jax.vmap(jax.random.key)(first_key + jnp.arange(lanes))
    return np.asarray(apply(config, params, tokens, initial_carry(config, lanes), keys)[0])


def test_without_keys_or_without_a_rate_nothing_is_dropped():
    whole = outputs(OUTPUT)
    np.testing.assert_array_equal(outputs(replace(OUTPUT, dropout=0.0)), whole)
    np.testing.assert_array_equal(outputs(replace(OUTPUT, dropout=0.0), first_key=0), whole)


def test_a_lane_has_one_mask_for_all_its_characters():
    dropped, whole = outputs(OUTPUT, first_key=0), outputs(OUTPUT)
    kept = dropped != 0
    assert (kept == kept[:, :1]).all()
    np.testing.assert_allclose(dropped, np.where(kept, whole / (1 - RATE), 0), rtol=1e-5)
    # That two of 32 masks of 64 units agree has odds of 1 in 10**15.
    assert len({lane.tobytes() for lane in kept[:, 0]}) == LANES


def test_the_rate_is_what_the_config_says():
    share = np.mean(outputs(OUTPUT, first_key=0)[:, 0] == 0)
    # 2,048 draws: 5 standard deviations, that is 1 in 1.7 million were the seed not fixed.
    assert abs(share - RATE) < 5 * math.sqrt(RATE * (1 - RATE) / (LANES * UNITS))


def test_a_mask_is_a_function_of_the_lanes_key_alone():
    many, few = outputs(OUTPUT, first_key=0), outputs(OUTPUT, lanes=2, first_key=5)
    np.testing.assert_array_equal(few != 0, many[5:7] != 0)


def test_each_place_of_dropout_has_its_own_masks():
    # What a place drops has no weight in what follows, so its rows get no gradient: a whole
    # row, and so for all characters at once.
    width, rates = 64, {"dropout_in": 0.2, "dropout_between": 0.5, "dropout": 0.8}
    config = ModelConfig(cell="gru", hidden=width, layers=3, embed=width, **rates)
    params, carry = params_of(config, VOCAB), carry_of(config, 1)

    @jax.jit
    def grads(params, tokens, key):
        def total(params):
            return CharRNN(config, VOCAB).run(params, tokens, carry, key[None])[0][..., 0].sum()

        return jax.grad(total)(params)

    g = grads(params, tokens_of(VOCAB, 1, TIME), jax.random.key(2))
    kernels = [g[f"layer_{i}"]["kernel"] for i in range(3)] + [g["output_kernel"]]
    masks = [np.asarray(kernel != 0).any(axis=1) for kernel in kernels]
    for mask, rate in zip(masks, (0.2, 0.5, 0.5, 0.8), strict=True):
        # 3 standard deviations, 1 in 370, which the seed keeps.
        assert abs(mask.sum() - width * (1 - rate)) < 3 * math.sqrt(width * rate * (1 - rate))
    assert len({mask.tobytes() for mask in masks}) == 4
    np.testing.assert_array_equal(np.asarray(g["embedding"] != 0).any(axis=0), masks[0])


TUTORIALS = {
    "TensorFlow, LSTM": (ModelConfig(cell="lstm", hidden=1024, embed=256), 65, 5_330_241),
    "Grimm": (ModelConfig(cell="lstm", hidden=512, embed=256), 70, 1_628_742),
    # Keras says 4,022,850 for this one. Its GRU, as cuDNN's, has two biases for each of the
    # reset and the update gate, one beside the input's share and one beside the state's, which
    # only ever occur as a sum. charjax has that sum, so 2 * 1024 numbers less.
    "TensorFlow, GRU": (ModelConfig(hidden=1024, embed=256), 66, 4_022_850 - 2 * 1024),
}


@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_parameter_counts_are_those_of_the_tutorials(tutorial):
    config, vocab_size, count = TUTORIALS[tutorial]
    params = jax.eval_shape(lambda: init_params(config, vocab_size, jax.random.key(0)))
    assert parameter_count(params) == count


@pytest.mark.parametrize("cell", CELLS)
def test_a_fresh_model_knows_nothing(cell):
    vocab_size, config = 65, ModelConfig(cell=cell, hidden=64, embed=16)
    params, tokens = (
        init_params(config, vocab_size, jax.random.key(0)),
        tokens_of(vocab_size, 8, 33),
    )
    logits, _ = apply(config, params, tokens[:, :-1], initial_carry(config, 8))
    loss = float(next_char_nats(logits, tokens[:, 1:]).mean())
    assert abs(loss - math.log(vocab_size)) < 0.1


def test_fresh_parameters_are_a_function_of_the_key():
    config = replace(CONFIGS["rnn"], layers=1)
    first, again, other = (init_params(config, VOCAB, jax.random.key(s)) for s in (0, 0, 1))
    assert distance(again, first) == 0
    assert distance(other, first) > 0.5


@pytest.mark.parametrize("cell", CELLS)
def test_both_recurrences_have_the_same_parameters(cell):
    fast, scan = (
        jax.eval_shape(
            functools.partial(init_params, replace(CONFIGS[cell], recurrence=r), VOCAB),
            jax.random.key(0),
        )
        for r in ("fast", "scan")
    )
    assert fast == scan


@pytest.mark.parametrize("cell", CELLS)
def test_the_first_carry(cell):
    carry = initial_carry(CONFIGS[cell], BATCH)
    leaves = jax.tree.leaves(carry)
    assert [leaf.shape for leaf in leaves] == [(BATCH, 5)] * (2 * CELLS[cell].states)
    assert all(leaf.dtype == jnp.float32 and not leaf.any() for leaf in leaves)
    # One buffer for two leaves could not be donated to a step.
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_restart_clears_the_fresh_lanes_alone():
    carry = carry_of(CONFIGS["lstm"], BATCH)
    reset = jnp.array([False, True, False])
    for before, after in zip(
        jax.tree.leaves(carry), jax.tree.leaves(reset_carry(carry, reset)), strict=True
    ):
        assert not after[1].any()
        np.testing.assert_array_equal(after[::2], before[::2])


def test_nats_are_the_negative_log_of_the_probability():
    probs = np.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]])
    logits = jnp.asarray(np.log(probs) + 50, jnp.float32)  # a constant changes nothing
    nats = next_char_nats(logits, jnp.array([[0, 2]]))
    np.testing.assert_allclose(nats, -np.log([[0.5, 0.7]]), rtol=1e-4)
