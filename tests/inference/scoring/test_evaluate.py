"""An evaluation is the mean loss of one pass over the text, however it is cut into sequences."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from optax.losses import softmax_cross_entropy_with_integer_labels

from charjax.errors import InputError
from charjax.inference.scoring import forward_pass
from charjax.inference.scoring.evaluate import Score, char_nats, score, streamed_score
from charjax.inference.scoring.forward_pass import ZeroCarry, in_text_order, iter_predictions
from charjax.inference.scoring.score import in_windows
from charjax.model.carry import initial_carry
from tests.inference.scripted import chain, cycle, memoryless, random_model
from tests.model.small import apply

pytestmark = pytest.mark.usefixtures("eight_devices")

VOCAB, LONGEST = 6, 70_000
IDS = np.random.default_rng(0).integers(0, VOCAB, LONGEST).astype(np.int32)
# Halved weights forget within a line, as does any model that has learnt to write; evaluation
# relies on 512 characters of context being enough.
CONFIG, PARAMS = random_model(VOCAB, cell="lstm", hidden=4)
PARAMS = jax.tree.map(lambda p: p / 2, PARAMS)


@functools.cache
def one_pass():
    """The nats of every character but the first, by one pass of the network."""

    logits, _ = apply(CONFIG, PARAMS, IDS[None, :-1], initial_carry(CONFIG, 1))
    return np.asarray(softmax_cross_entropy_with_integer_labels(logits[0], IDS[1:]), np.float64)


@pytest.mark.parametrize("chars", [2, 3, 129, 5000, LONGEST])
def test_chunks_equal_one_pass_over_the_text(chars):
    # The loss of a character does not depend on what follows: a shorter text's are the first.
    want = one_pass()[: chars - 1]
    nats = char_nats(CONFIG, PARAMS, IDS[:chars])
    assert nats.shape == want.shape
    np.testing.assert_allclose(nats, want, atol=1e-5)
    result = score(CONFIG, PARAMS, IDS[:chars])
    assert result.chars == chars - 1
    assert result.nats_per_char == pytest.approx(want.mean(), abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_document_is_scored_as_if_it_were_alone(dtype):
    boundary_id, config = VOCAB - 1, replace(CONFIG, dtype=dtype)
    letters = np.random.default_rng(1).integers(0, boundary_id, (40, 37))
    documents = [[boundary_id, *row[: 3 + i % 30]] for i, row in enumerate(letters)]
    together = np.concatenate([*documents, [boundary_id]]).astype(np.int32)
    nats = char_nats(config, PARAMS, together, boundary_id=boundary_id)
    ends = np.cumsum([len(document) for document in documents])
    for i in (0, 17, 29):
        alone = np.array([*documents[i], boundary_id], np.int32)
        want = char_nats(config, PARAMS, alone)
        np.testing.assert_allclose(nats[ends[i] - len(documents[i]) : ends[i]], want, atol=1e-5)
    assert np.abs(char_nats(config, PARAMS, together) - nats).max() > 1e-3


@pytest.mark.parametrize("chars", [2, 8193, 8194, LONGEST])
def test_a_score_in_constant_memory_has_the_digits_of_the_mean_of_all_losses(chars):
    arguments = (softmax_cross_entropy_with_integer_labels, CONFIG, PARAMS, IDS[:chars])
    pieces = iter_predictions(*arguments, zero_carry=ZeroCarry())
    assert streamed_score(pieces, chars - 1) == score(*arguments[1:])


@pytest.mark.parametrize("boundary_id", [None, 5])
def test_a_window_is_scored_as_if_it_were_alone(boundary_id):
    window, ids = 37, IDS[:5000]
    pieces = iter_predictions(
        softmax_cross_entropy_with_integer_labels,
        CONFIG,
        PARAMS,
        ids,
        zero_carry=ZeroCarry(boundary_id, window),
    )
    nats = in_text_order(pieces)
    assert nats.shape == (4999,)
    for start in (0, window, 60 * window, 135 * window):
        alone = ids[start : start + window + 1]
        want = char_nats(CONFIG, PARAMS, alone, boundary_id=boundary_id)
        np.testing.assert_allclose(nats[start : start + window], want, atol=1e-5)


def test_a_model_that_knows_nothing_scores_the_log_of_the_vocabulary():
    result = score(*memoryless([0.0] * VOCAB), IDS[:5000])
    assert result.nats_per_char == pytest.approx(math.log(VOCAB), abs=1e-6)
    assert result.perplexity == pytest.approx(VOCAB, abs=1e-5)
    assert result.bits_per_char == pytest.approx(math.log2(VOCAB), abs=1e-5)


def test_the_loss_of_a_character_is_its_negative_log_probability():
    probs = np.array([[0.5, 0.5], [0.1, 0.9]])
    ids = np.array([0, 1, 1, 0, 0], np.int32)
    want = -np.log([0.5, 0.9, 0.1, 0.5])
    np.testing.assert_allclose(char_nats(*chain(np.log(probs)), ids), want, rtol=1e-5)


def test_a_certain_model_has_no_loss_until_it_is_wrong():
    ids = np.tile(np.arange(3, dtype=np.int32), 2000)
    assert score(*cycle(3), ids).nats_per_char < 1e-6
    ids[4000] = (ids[4000] + 1) % 3
    nats = char_nats(*cycle(3), ids)
    # Wrong about the changed character, and wrong about the one after it.
    np.testing.assert_array_equal(np.flatnonzero(nats > 1), [3999, 4000])
    np.testing.assert_allclose(nats[3999:4001], 50, rtol=1e-5)


@pytest.mark.parametrize("max_chars", [1, 1000, 10_000, 65_537, LONGEST - 2, LONGEST])
def test_a_bounded_evaluation_reads_the_same_parts_spread_over_the_text(max_chars):
    want = one_pass()
    nats = char_nats(CONFIG, PARAMS, IDS, max_chars=max_chars)
    parts = max(1, min(64, min(max_chars, want.size) // 1024))
    length = -(-min(max_chars, want.size) // parts)
    assert nats.size <= min(want.size, parts * length)
    assert nats.size >= min(want.size, max_chars) - parts
    starts = [part * -(-want.size // parts) for part in range(parts)]
    np.testing.assert_allclose(
        nats, np.concatenate([want[start : start + length] for start in starts]), atol=1e-5
    )


def test_a_large_vocabulary_is_evaluated_in_smaller_chunks(monkeypatch):
    """The logits of a dispatch are bounded."""
    want = char_nats(CONFIG, PARAMS, IDS[:5000])
    monkeypatch.setattr(forward_pass, "_MAX_LOGITS_BYTES", 4 * VOCAB * 4 * 4)  # 4 x 4 characters
    seen = []
    nats = char_nats(CONFIG, PARAMS, IDS[:5000], progress=lambda done, total: seen.append(total))
    np.testing.assert_allclose(nats, want, atol=1e-6)
    assert seen[0] > 256


def test_a_list_of_ids_is_scored_as_an_array_of_them():
    assert score(CONFIG, PARAMS, IDS[:50].tolist()) == score(CONFIG, PARAMS, IDS[:50])


def test_progress_ends_at_the_total():
    seen = []
    score(CONFIG, PARAMS, IDS[:5000], progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))
    assert {total for _, total in seen} == {len(seen)}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score(CONFIG, PARAMS, IDS[:0]), "the text has 0 characters: "),
        (lambda: score(CONFIG, PARAMS, IDS[:1]), "the text has 1 character: "),
        (lambda: score(CONFIG, PARAMS, IDS[None, :50]), r"token ids of shape \(1, 50\): "),
        (lambda: score(CONFIG, PARAMS, IDS[:50] / 2), "token ids of dtype float64: "),
        # Not the id that it is in 32 bits.
        (lambda: score(CONFIG, PARAMS, [0, 2**32 + 1]), "id 4294967297: "),
        (lambda: score(CONFIG, PARAMS, IDS[:50], max_chars=-3), "max_chars=-3: "),
        (lambda: score(CONFIG, PARAMS, IDS[:50], max_chars=2.5), "max_chars=2.5: "),
        (lambda: score(CONFIG, PARAMS, IDS[:50], boundary_id=99), "id 99: the model has "),
        (lambda: in_windows(-3), "--window=-3: "),
        (lambda: in_windows(2.5), "--window=2.5: "),
    ],
)
def test_what_cannot_be_scored_is_refused(call, message):
    with pytest.raises(InputError, match=f"^{message}"):
        call()


def test_a_traced_model_is_refused_with_what_to_call():
    with pytest.raises(InputError, match=r"jax.jit.*CharRNN.run"):
        jax.eval_shape(lambda params: score(CONFIG, params, IDS).nats_per_char, PARAMS)


def test_nats_bits_and_perplexity_agree():
    result = Score(10, math.log(8))
    assert result.bits_per_char == pytest.approx(3)
    assert result.perplexity == pytest.approx(8)
    assert json.loads(json.dumps(result.to_json())) == {
        "chars": 10,
        "nats_per_char": result.nats_per_char,
        "bits_per_char": result.bits_per_char,
        "bits_per_byte": None,  # the ids have no vocabulary
        "perplexity": result.perplexity,
    }


def test_an_overflowing_perplexity_is_infinite_and_null_in_json():
    result = Score(1, 1000.0)
    assert result.perplexity == math.inf
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert values["nats_per_char"] == 1000
    assert values["perplexity"] is None
