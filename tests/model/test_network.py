"""The network equals its float64 equations; text in chunks with carry equals the whole text
(invariant 3 of CONTRIBUTING.md).
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.losses import softmax_cross_entropy_with_integer_labels

from charjax.config import Config, ModelConfig, to_config_dict
from charjax.errors import InputError
from charjax.inference.sampling.sampler import Sampler
from charjax.inference.scoring.evaluate import char_nats
from charjax.model.carry import document_resets, initial_carry, reset_carry
from charjax.model.cells import CELLS
from charjax.model.network import CharRNN, _Dropout, init_params, parameter_count
from tests.model import reference
from tests.model.small import apply, carry_of, distance, float64, param_shapes, params_of, tokens_of

VOCAB, BATCH, TIME, BOUNDARY = 7, 3, 8, 2
CONFIGS = {cell: ModelConfig(cell=cell, hidden=5, layers=2, embed=4) for cell in CELLS}


def inputs(config):
    return params_of(config, VOCAB), tokens_of(VOCAB, BATCH, TIME), carry_of(config, BATCH)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("embed", [0, 4])
def test_it_equals_the_float64_network(cell, embed):
    config = replace(CONFIGS[cell], embed=embed)
    params, tokens, carry = inputs(config)
    got = apply(config, params, tokens, carry)
    want = reference.network(config, float64(params), np.asarray(tokens), float64(carry))
    assert distance(got, want) < 1e-5


@pytest.mark.parametrize("cell", CELLS)
def test_with_resets_it_equals_the_float64_network(cell):
    config = CONFIGS[cell]
    params, tokens, carry = inputs(config)
    resets = document_resets(tokens, BOUNDARY)
    assert np.array_equal(resets, np.asarray(tokens) == BOUNDARY)
    assert resets.any()
    got = apply(config, params, tokens, carry, resets=resets)
    exact = float64(params), np.asarray(tokens), float64(carry), np.asarray(resets)
    assert distance(got, reference.network(config, *exact)) < 1e-5


def test_without_a_boundary_there_are_no_resets():
    assert document_resets(tokens_of(VOCAB, BATCH, TIME), None) is None


@pytest.mark.parametrize("cell", CELLS)
def test_two_chunks_with_carry_equal_the_whole(cell):
    config = CONFIGS[cell]
    params, tokens, carry = inputs(config)
    whole = apply(config, params, tokens, carry)
    first, between = apply(config, params, tokens[:, : TIME // 2], carry)
    second, last = apply(config, params, tokens[:, TIME // 2 :], between)
    assert distance((jnp.concatenate([first, second], 1), last), whole) < 1e-6


@pytest.mark.parametrize("cell", CELLS)
def test_logits_do_not_depend_on_later_tokens(cell):
    config = CONFIGS[cell]
    params, tokens, carry = inputs(config)
    before, _ = apply(config, params, tokens, carry)
    for t in (0, 3, TIME - 1):
        changed = tokens.at[:, t].set((tokens[:, t] + 1) % VOCAB)
        after, _ = apply(config, params, changed, carry)
        differs = np.any(before != after, axis=2)
        assert not differs[:, :t].any()
        assert differs[:, t:].all()


def test_last_only_returns_the_last_position():
    config = CONFIGS["gru"]
    params, tokens, carry = inputs(config)
    logits, last = apply(config, params, tokens, carry)
    got = apply(config, params, tokens, carry, last_only=True)
    assert got[0].shape == (BATCH, 1, VOCAB)
    assert distance(got, (logits[:, -1:], last)) < 1e-6


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("recurrence", ["fast", "xla"])
def test_arrays_of_numpy_and_of_other_dtypes_are_cast(recurrence):
    config = replace(CONFIGS["gru"], recurrence=recurrence)
    params, tokens, carry = jax.tree.map(np.asarray, inputs(config))
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, carry))
    rounded = jax.tree.map(lambda leaf: leaf.astype(np.float32), halves)
    network = CharRNN(config, VOCAB)
    got = network.run(halves[0], tokens.astype(np.uint8), halves[1])  # not compiled as a whole
    assert distance(got, apply(config, rounded[0], tokens, rounded[1])) < 1e-6


@pytest.mark.usefixtures("unchecked_types")
def test_tokens_that_are_no_integers_are_refused():
    params, tokens, carry = inputs(CONFIGS["gru"])
    with pytest.raises(InputError, match=r"^tokens of dtype float32: must be integers"):
        apply(CONFIGS["gru"], params, tokens.astype(jnp.float32), carry)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("name", ["tokens", "carry", "resets", "dropout_keys"])
def test_shapes_that_do_not_fit_together_are_refused(name):
    config = CONFIGS["gru"]
    params, tokens, carry = inputs(config)
    keys = jax.random.split(jax.random.key(0), BATCH)
    wrong = {
        "tokens": [tokens[0]],
        "carry": [carry[:1], (*carry, carry[0]), carry_of(config, 1), carry_of(CONFIGS["lstm"], 3)],
        "resets": [tokens[:1] == 0],
        "dropout_keys": [keys[:1], keys[0]],
    }
    fitting = {"tokens": tokens, "carry": carry, "resets": tokens == 0, "dropout_keys": keys}
    for value in wrong[name]:
        with pytest.raises(InputError, match=f"^{name} of shapes? "):
            CharRNN(config, VOCAB).run(params, **fitting | {name: value})


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("wrong", [to_config_dict(Config()).model, Config()])
def test_a_config_of_another_type_is_refused(wrong):
    params, tokens, carry = inputs(CONFIGS["gru"])
    for make in (
        lambda: initial_carry(wrong, BATCH),
        lambda: init_params(wrong, VOCAB, jax.random.key(0)),
        lambda: CharRNN(wrong, VOCAB).run(params, tokens, carry),
        lambda: char_nats(wrong, params, np.asarray(tokens[0])),
        lambda: Sampler(wrong, params, masked=None),
    ):
        with pytest.raises(InputError, match=r"^config\.model of type \w+: must be a ModelConfig"):
            make()


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("number", [-1, 2.5, None])
def test_a_number_of_tokens_or_sequences_that_is_none_is_refused(number):
    for what, make in (
        ("vocab_size", lambda: init_params(CONFIGS["gru"], number, jax.random.key(0))),
        ("batch", lambda: initial_carry(CONFIGS["gru"], number)),
    ):
        with pytest.raises(InputError, match=f"^{what}={number}: must be "):
            make()


LARGER = {"hidden": 6, "layers": 3, "embed": 0, "cell": "lstm"}


@pytest.mark.parametrize("field", LARGER)
def test_parameters_of_another_config_are_refused(field):
    """flax would ignore those that it does not read, such as a third layer."""
    config, other = CONFIGS["gru"], replace(CONFIGS["gru"], **{field: LARGER[field]})
    params, tokens, carry = inputs(config)
    for model, given in ((config, params_of(other, VOCAB)), (other, params), (config, {})):
        for call in (
            lambda m=model, p=given: CharRNN(m, VOCAB).run(p, tokens, carry),
            lambda m=model, p=given: char_nats(m, p, np.asarray(tokens[0])),
            lambda m=model, p=given: Sampler(m, p, masked=None),
        ):
            with pytest.raises(InputError, match=r"^params: \S+ is .*, but must be "):
                call()
    with pytest.raises(InputError, match=r"^params: \S+ is .* and 8 tokens; "):
        CharRNN(config, VOCAB + 1).run(params, tokens, carry)


@pytest.mark.usefixtures("unchecked_types")
def test_what_are_no_parameters_is_refused():
    params = params_of(CONFIGS["gru"], VOCAB)
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), params)  # of an ensemble
    for given in (None, [params], {"params": params}, stacked, params | {"output_bias": 0.0}):
        with pytest.raises(InputError, match=r"^params"):
            char_nats(CONFIGS["gru"], given, np.arange(3))


@pytest.mark.parametrize(
    ("field", "value"),
    [("cell", "LSTM"), ("dtype", "float16"), ("init", "zeros"), ("hidden", 0), ("dropout", 1.5)],
)
def test_a_field_outside_its_limits_is_refused_by_name(field, value):
    params, tokens, carry = inputs(CONFIGS["gru"])
    wrong = replace(CONFIGS["gru"], **{field: value})
    for make in (
        lambda: initial_carry(wrong, BATCH),
        lambda: CharRNN(wrong, VOCAB).run(params, tokens, carry),
    ):
        with pytest.raises(InputError, match=f"^config.model.{field}={value!r}: must be "):
            make()


@pytest.mark.parametrize("cell", CELLS)
def test_parameters_are_float32_where_jax_has_float64(cell):
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda: init_params(CONFIGS[cell], VOCAB, jax.random.key(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


UNITS, SEQUENCES, RATE = 64, 32, 0.4
OUTPUT = ModelConfig(cell="rnn", hidden=UNITS, embed=4, dropout=RATE)


@functools.cache
def outputs(config, batch=SEQUENCES, first_key=None):
    """The last layer's outputs [batch, time, units] after dropout, of equal sequences."""
    params = params_of(config, UNITS)
    params |= {"output_kernel": jnp.eye(UNITS), "output_bias": jnp.zeros(UNITS)}
    tokens = tokens_of(UNITS, 1, TIME).repeat(batch, 0)
    keys = None
    if first_key is not None:
        keys = jax.vmap(jax.random.key)(first_key + jnp.arange(batch))
    return np.asarray(apply(config, params, tokens, initial_carry(config, batch), keys)[0])


def test_nothing_is_dropped_without_keys_or_with_a_rate_of_0():
    plain = outputs(OUTPUT)
    np.testing.assert_array_equal(outputs(replace(OUTPUT, dropout=0.0)), plain)
    np.testing.assert_array_equal(outputs(replace(OUTPUT, dropout=0.0), first_key=0), plain)


def test_a_sequence_has_one_mask_for_all_time_steps():
    dropped, plain = outputs(OUTPUT, first_key=0), outputs(OUTPUT)
    mask = dropped != 0
    assert (mask == mask[:, :1]).all()
    np.testing.assert_allclose(dropped, np.where(mask, plain / (1 - RATE), 0), rtol=1e-5)
    # Two of 32 masks of 64 units agree by chance in 1 of 10**15 runs.
    assert len({row.tobytes() for row in mask[:, 0]}) == SEQUENCES


def test_the_dropout_rate_is_that_of_the_config():
    rate = np.mean(outputs(OUTPUT, first_key=0)[:, 0] == 0)
    # Within 5 standard deviations: another seed would fail in 1 of 1.7 million cases.
    assert abs(rate - RATE) < 5 * math.sqrt(RATE * (1 - RATE) / (SEQUENCES * UNITS))


def test_a_mask_is_a_function_of_the_key_of_its_sequence():
    many, few = outputs(OUTPUT, first_key=0), outputs(OUTPUT, batch=2, first_key=5)
    np.testing.assert_array_equal(few != 0, many[5:7] != 0)


def test_a_mask_is_the_same_where_jax_has_float64():
    keys, x = jax.vmap(jax.random.key)(jnp.arange(3)), jnp.ones((UNITS, 1, 3))
    masks = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            masks.append(np.asarray(_Dropout(keys)(x, RATE)) != 0)
    np.testing.assert_array_equal(*masks)


def test_each_site_of_dropout_has_other_masks():
    # A dropped feature is 0 at all time steps, so its row of the next kernel has no gradient.
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
        # Within 3 standard deviations: another seed would fail in 1 of 370 cases.
        assert abs(mask.sum() - width * (1 - rate)) < 3 * math.sqrt(width * rate * (1 - rate))
    assert len({mask.tobytes() for mask in masks}) == 4
    np.testing.assert_array_equal(np.asarray(g["embedding"] != 0).any(axis=0), masks[0])


TUTORIALS = {
    "TensorFlow, LSTM": (ModelConfig(cell="lstm", hidden=1024, embed=256), 65, 5_330_241),
    "Grimm": (ModelConfig(cell="lstm", hidden=512, embed=256), 70, 1_628_742),
    # Keras counts 4,022,850. Its GRU, like cuDNN's, has two biases for each of the reset and the
    # update gate, one in the input gates and one in the hidden gates, which are only ever added.
    # charjax has their sum, hence 2 * 1024 parameters fewer.
    "TensorFlow, GRU": (ModelConfig(hidden=1024, embed=256), 66, 4_022_850 - 2 * 1024),
}


@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_parameter_counts_are_those_of_the_tutorials(tutorial):
    config, vocab_size, count = TUTORIALS[tutorial]
    params = jax.eval_shape(lambda: init_params(config, vocab_size, jax.random.key(0)))
    assert parameter_count(params) == count


@pytest.mark.parametrize("cell", CELLS)
def test_the_initial_loss_is_that_of_uniform_guesses(cell):
    vocab_size, config = 65, ModelConfig(cell=cell, hidden=64, embed=16)
    params, tokens = (
        init_params(config, vocab_size, jax.random.key(0)),
        tokens_of(vocab_size, 8, 33),
    )
    logits, _ = apply(config, params, tokens[:, :-1], initial_carry(config, 8))
    loss = float(softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean())
    assert abs(loss - math.log(vocab_size)) < 0.1


def test_initial_parameters_are_a_function_of_the_key():
    config = replace(CONFIGS["rnn"], layers=1)
    first, again, other = (init_params(config, VOCAB, jax.random.key(s)) for s in (0, 0, 1))
    assert distance(again, first) == 0
    assert distance(other, first) > 0.5


@pytest.mark.parametrize("cell", CELLS)
def test_the_initial_carry_is_float32_zeros(cell):
    carry = initial_carry(CONFIGS[cell], BATCH)
    leaves = jax.tree.leaves(carry)
    assert [leaf.shape for leaf in leaves] == [(BATCH, 5)] * (2 * CELLS[cell].states)
    assert all(leaf.dtype == jnp.float32 and not leaf.any() for leaf in leaves)
    # JAX refuses to donate a buffer of two leaves.
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_reset_carry_clears_the_selected_sequences_only():
    carry = carry_of(CONFIGS["lstm"], BATCH)
    reset = jnp.array([False, True, False])
    for before, after in zip(
        jax.tree.leaves(carry), jax.tree.leaves(reset_carry(carry, reset)), strict=True
    ):
        assert not after[1].any()
        np.testing.assert_array_equal(after[::2], before[::2])


@pytest.mark.parametrize(
    ("layers", "init"), [(1, "orthogonal"), (3, "keras"), (1, "keras_glorot"), (3, "torch")]
)
@pytest.mark.parametrize("embed", [0, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_the_shapes_are_known_without_the_network(cell, embed, layers, init):
    config = ModelConfig(cell=cell, hidden=5, layers=layers, embed=embed, init=init)
    initial = jax.eval_shape(lambda: init_params(config, VOCAB, jax.random.key(0)))
    assert param_shapes(config, VOCAB) == initial
