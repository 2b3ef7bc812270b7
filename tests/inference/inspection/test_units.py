"""What `charjax look` computes: predictions, activations, features, units that separate them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.config import ModelConfig
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.inference.inspection import features
from charjax.inference.inspection.inspect import activations, feature_text, inspect
from charjax.inference.inspection.units import auc, average_ranks, separations, spearman
from charjax.inference.scoring.predictions import predict, prediction_records
from charjax.inference.scoring.score import score_text
from charjax.model.carry import initial_carry
from charjax.runtime.display import no_progress
from tests.inference.scripted import chain, random_model, trained
from tests.model.small import apply

AB = trained(chain(np.log([[0.5, 0.4, 0.1], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])), "abc")


@pytest.mark.parametrize(
    ("ids", "message"), [([], "the text is empty"), ([0, 3], "id 3: "), ([-1], "id -1: ")]
)
def test_ids_without_activations_are_refused(ids, message):
    with pytest.raises(InputError, match=f"^{message}"):
        activations(AB, np.array(ids, np.int32), no_progress)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("look", [activations, predict, score_text, inspect])
def test_a_list_of_ids_is_a_text_and_a_list_of_texts_is_refused(look):
    ids = AB.vocab.encode("abca").tolist()
    of_list, of_array = (look(AB, text, no_progress) for text in (ids, np.array(ids)))
    jax.tree.map(np.testing.assert_array_equal, of_list, of_array)
    for texts, message in (([ids, ids], r"shape \(2, 4\)"), ([ids, ids[1:]], "several texts")):
        with pytest.raises(InputError, match=f"^token ids of {message}: "):
            look(AB, texts, no_progress)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("ids", "message"),
    [([0.5, 1.5], "token ids of dtype float64: "), ([0, 2**32 + 1], "id 4294967297: ")],
)
def test_what_is_no_id_is_not_rounded_to_one(ids, message):
    with pytest.raises(InputError, match=f"^{message}"):
        inspect(AB, ids, no_progress)


def test_predictions_are_the_models_probabilities():
    ids = AB.vocab.encode("abca")
    records = list(prediction_records(AB.vocab, ids, predict(AB, ids, no_progress)))
    assert [(r["character"], r["rank"]) for r in records] == [("b", 2), ("c", 1), ("a", 2)]
    assert [r["nats"] for r in records] == pytest.approx(-np.log([0.4, 0.7, 0.3]), rel=1e-5)
    first = {entry["character"]: entry["probability"] for entry in records[0]["top"]}
    assert list(first) == ["a", "b", "c"]
    assert list(first.values()) == pytest.approx([0.5, 0.4, 0.1], rel=1e-5)
    assert score_text(AB, ids, no_progress).nats_per_char == pytest.approx(
        np.mean([r["nats"] for r in records])
    )


def test_a_document_boundary_is_null_and_an_unknown_character_is_named():
    vocab = Vocab(("a",), "codepoint", unk=True, boundary=True)
    model = trained(random_model(3), "a", vocab=vocab)
    ids = np.array([1, 0, 2, 1], np.int32)
    records = prediction_records(vocab, ids, predict(model, ids, no_progress))
    assert [record["character"] for record in records] == ["a", "[UNK]", None]
    assert feature_text(vocab, ids) == "\na\ufffd\n"


@pytest.mark.parametrize("cell", ["gru", "lstm", "mingru"])
def test_activations_are_the_networks_states_from_minus_one_to_one(cell):
    config, params = random_model(4, cell=cell, layers=2)
    model = trained((config, jax.tree.map(lambda p: 4 * p, params)), "abcd")
    ids = np.random.default_rng(0).integers(4, size=20).astype(np.int32)
    units = activations(model, ids, no_progress)
    assert units.shape == (16, 20)
    config, carry = model.config.model, initial_carry(model.config.model, 1)
    for end in (1, 20):
        _, states = apply(config, model.params, jnp.asarray(ids[None, :end]), carry)
        want = np.concatenate([layer[-1] for layer in states], axis=1)[0]
        want = want if cell == "gru" else np.tanh(want)
        np.testing.assert_allclose(units[:, end - 1], want, atol=1e-5)
    assert 0.5 < np.abs(units).max() <= 1


def test_units_are_compared_by_their_state_where_its_tanh_is_rounded_to_one():
    """An LSTM unit that counts the characters of each line: all its gates are open."""
    layer = {"kernel": jnp.zeros((2, 4)), "bias": jnp.full(4, 20.0)}
    layer["recurrent"] = {"kernel": jnp.zeros((1, 4))}
    params = {"layer_0": layer, "output_kernel": jnp.zeros((1, 2)), "output_bias": jnp.zeros(2)}
    vocab = Vocab(("a",), "codepoint", unk=False, boundary=True)
    model = trained((ModelConfig(cell="lstm", hidden=1, embed=0), params), "a", vocab=vocab)
    ids = np.tile(np.array([1] + [0] * 99, np.int32), 20)
    found = {s.feature.name: s for s in inspect(model, ids, no_progress).separations}
    counts = np.tile(np.arange(1.0, 101.0), (1, 10))
    positions = features.line_position(feature_text(vocab, ids))
    assert found["line position"].units[0].reported == pytest.approx(
        float(spearman(average_ranks(counts), positions[1000:])[0])
    )


def test_every_document_starts_from_a_zero_state():
    vocab = Vocab(("a", "b"), "codepoint", unk=False, boundary=True)
    model = trained(random_model(3), "ab", vocab=vocab)
    units = activations(model, np.array([2, 0, 1, 2, 0, 1], np.int32), no_progress)
    np.testing.assert_allclose(units[:, :3], units[:, 3:], atol=1e-6)


def test_features_of_a_text():
    text = 'A|  "b2"|BC:||"d||e'.replace("|", "\n")
    values = {feature.name: feature.values(text) for feature in features.FEATURES}
    assert {name: "".join(str(int(v)) for v in row) for name, row in values.items()} == {
        "line position": "0101234560123001200",
        "quotes": "0000111000000011100",
        "speaker names": "0000000001110000000",
        "capitals": "1000000001100000000",
        "digits": "0000001000000000000",
        "indentation": "0012222220000000000",
    }


def test_curly_quotes_end_with_their_partner():
    assert features.quotes('“a"” «b»').tolist() == [True] * 3 + [False] * 2 + [True] * 2 + [False]


def test_statistics_of_ranks():
    rng = np.random.default_rng(3)
    x, positive = rng.integers(9, size=(4, 60)).astype(np.float32), rng.random(60) < 0.4
    ranks = average_ranks(x)
    above = (x[:, positive, None] > x[:, None, ~positive]).mean((1, 2))
    equal = (x[:, positive, None] == x[:, None, ~positive]).mean((1, 2))
    np.testing.assert_allclose(auc(ranks, positive), above + equal / 2)
    number = rng.integers(5, size=60)
    (number_ranks,) = average_ranks(number[None].astype(np.float32))
    want = [np.corrcoef(row, number_ranks)[0, 1] for row in ranks]
    np.testing.assert_allclose(spearman(ranks, number), want)
    assert spearman(average_ranks(np.ones((1, 60), np.float32)), number) == 0


def test_a_unit_is_chosen_on_the_first_half_and_its_figure_is_of_the_second():
    text = "abcDEfgh\n" * 40
    capitals = features.capitals(text)
    half = len(text) // 2
    units = np.random.default_rng(0).normal(size=(3, len(text))).astype(np.float32)
    units[1, :half] = np.where(capitals[:half], -1, 1)  # separates on the first half only
    by_name = {s.feature.name: s for s in separations(text, units)}
    best = by_name["capitals"].units[0]
    assert (best.number, best.sign, best.chosen) == (1, -1, 1.0)
    assert best.reported == pytest.approx(
        1 - auc(average_ranks(units[:, half:]), capitals[half:])[1]
    )
    assert abs(best.reported - 0.5) < 0.2
    assert by_name["line position"].statistic == "Spearman"
    assert by_name["digits"].units == ()
