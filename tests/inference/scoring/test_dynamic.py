"""Dynamic evaluation predicts a segment before it learns from it, by the rule of its paper."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.losses import softmax_cross_entropy_with_integer_labels

from charjax.errors import InputError
from charjax.inference.options import DynamicOptions
from charjax.inference.scoring.dynamic import gradient_rms, iter_dynamic, update_rule
from charjax.inference.scoring.evaluate import char_nats
from charjax.inference.scoring.forward_pass import ZeroCarry, in_text_order
from charjax.model.carry import initial_carry
from charjax.model.network import CharRNN
from tests.inference.scripted import random_model

VOCAB, SEGMENT = 6, 5
CONFIG, PARAMS = random_model(VOCAB, hidden=4)
IDS = np.random.default_rng(0).integers(0, VOCAB, 48).astype(np.int32)
OPTIONS = DynamicOptions(learning_rate=0.02, decay=0.3, epsilon=1e-3, segment=SEGMENT)


def rms_of(ids=IDS, boundary_id=None):
    return gradient_rms(CONFIG, PARAMS, ids, zero_carry=ZeroCarry(boundary_id), segment=SEGMENT)


def nats_of(ids, options=OPTIONS, boundary_id=None):
    pieces = iter_dynamic(
        softmax_cross_entropy_with_integer_labels,
        CONFIG,
        update_rule(PARAMS, rms_of(), options),
        ids,
        zero_carry=ZeroCarry(boundary_id),
        segment=SEGMENT,
    )
    return in_text_order(pieces)


def loss(params, carry, inputs, targets):
    logits, carry = CharRNN(CONFIG, VOCAB).run(params, jnp.asarray(inputs), carry)
    nats = softmax_cross_entropy_with_integer_labels(logits, targets)
    return nats.mean(), (nats[0], carry)


grad_of_loss = jax.jit(jax.grad(loss, has_aux=True))


def test_the_losses_are_those_of_the_rule_written_out():
    rms = jax.tree.map(np.asarray, rms_of())
    mean = np.mean(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(rms)]))

    def update(theta, trained, s, g):
        pull = np.minimum(1, OPTIONS.decay * s / mean)
        step = OPTIONS.learning_rate * np.asarray(g) / (s + OPTIONS.epsilon)
        return theta + pull * (trained - theta) - step

    params = trained = jax.device_get(PARAMS)
    carry, want = initial_carry(CONFIG, 1), []
    for start in range(0, len(IDS) - 1, SEGMENT):
        text = IDS[None, start : start + SEGMENT + 1]
        grad, (nats, carry) = grad_of_loss(params, carry, text[:, :-1], text[:, 1:])
        params = jax.tree.map(update, params, trained, rms, grad)
        want.extend(nats)
    np.testing.assert_allclose(nats_of(IDS), want, atol=1e-5)
    static = char_nats(CONFIG, PARAMS, IDS)
    assert np.abs(nats_of(IDS)[SEGMENT:] - static[SEGMENT:]).min() > 0


@pytest.mark.parametrize("position", [2, 22, 24, 25])
def test_no_loss_depends_on_a_character_that_comes_later(position):
    """Nor on an update that this character is in, its own segment's or a later one."""
    changed = IDS.copy()
    changed[position] = (changed[position] + 1) % VOCAB
    same = nats_of(IDS) == nats_of(changed)
    # Prediction i is of character i + 1.
    assert same[: position - 1].all()
    assert not same[position - 1]


def test_the_first_segment_is_predicted_by_the_trained_weights():
    static = char_nats(CONFIG, PARAMS, IDS)
    np.testing.assert_allclose(nats_of(IDS)[:SEGMENT], static[:SEGMENT], atol=1e-6)


@pytest.mark.parametrize("boundary_id", [None, 5])
def test_without_a_learning_rate_it_is_the_static_evaluation(boundary_id):
    still = DynamicOptions(learning_rate=0.0, segment=SEGMENT)
    want = char_nats(CONFIG, PARAMS, IDS, boundary_id=boundary_id)
    np.testing.assert_allclose(nats_of(IDS, still, boundary_id), want, atol=1e-5)


def test_the_same_text_has_the_same_losses():
    np.testing.assert_array_equal(nats_of(IDS), nats_of(IDS))


def test_numbers_of_64_bits_change_no_loss():
    with jax.enable_x64(True):
        found = nats_of(IDS)
    np.testing.assert_allclose(found, nats_of(IDS), atol=1e-5)


def test_a_text_that_repeats_itself_is_learned():
    ids = np.tile(IDS[:12], 40)
    options = DynamicOptions(learning_rate=0.02, decay=0.0, epsilon=1e-3, segment=SEGMENT)
    assert nats_of(ids, options).mean() < 0.8 * char_nats(CONFIG, PARAMS, ids).mean()


def test_the_statistics_are_root_mean_squares_of_gradients_of_batches():
    ids = np.tile(IDS, 25)[:1102]  # 100 sequences, 11 apart: two segments each
    carry, squares = initial_carry(CONFIG, 100), []
    for first in (0, SEGMENT):
        at = 11 * np.arange(100)[:, None] + first + np.arange(SEGMENT)
        grad, (_, carry) = grad_of_loss(PARAMS, carry, ids[at], ids[at + 1])
        squares.append(jax.tree.map(np.square, jax.device_get(grad)))
    want = jax.tree.map(lambda a, b: np.sqrt((a + b) / 2), *squares)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), rms_of(ids), want
    )


@pytest.mark.parametrize("wrong", [-1, VOCAB])
def test_an_id_outside_the_vocabulary_is_refused(wrong):
    ids = IDS.copy()
    ids[20] = wrong
    for run in (nats_of, rms_of):
        with pytest.raises(InputError, match=f"^id {wrong}: the model has {VOCAB} tokens"):
            run(ids)


def test_a_training_text_without_a_segment_is_refused():
    with pytest.raises(InputError, match=r"^--segment=5: .* 5 characters"):
        rms_of(IDS[:5])
