"""A text file is scored with the model's vocabulary, and read as its training text was."""

from __future__ import annotations

import io
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from charjax.errors import DivergedError, InputError
from charjax.inference.scoring.score import read_file, score_text
from charjax.runtime.display import no_progress
from tests.inference.scripted import chain, trained

AB = trained(chain(np.log([[0.5, 0.5], [0.1, 0.9]])), "ab")


def score_of(file, unknown="error"):
    return score_text(AB, read_file(AB, file, unknown=unknown), no_progress)


def test_a_file_is_scored_with_the_models_vocabulary(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("abba", encoding="utf-8")
    want = -np.log([0.5, 0.9, 0.1]).mean()
    assert score_of(file).nats_per_char == pytest.approx(want)


@pytest.mark.parametrize("bias", [0.0, 3e38])
def test_a_model_too_large_for_a_finite_loss_is_named(bias, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("abba", encoding="utf-8")
    config, params = chain([[3e38, -3e38], [3e38, -3e38]])
    # With the bias the logits overflow, and without it their difference.
    huge = trained((config, params | {"output_bias": jnp.full(2, bias)}), "ab", step=7)
    with pytest.raises(DivergedError, match=r"^step 7: .* not finite; .*--checkpoint$"):
        score_text(huge, read_file(huge, str(file), unknown="error"), no_progress)


def test_a_file_takes_a_byte_a_character_and_is_not_held_as_text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("abba" * 3_000_000, encoding="utf-8")
    tracemalloc.start()
    ids = read_file(AB, str(file), unknown="error")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (ids.nbytes, ids[-3:].tolist()) == (12_000_000, [1, 1, 0])
    assert peak < 30_000_000  # and blocks of the file, and the buffer's last growth


def test_a_dash_is_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abba")))
    assert score_of("-").chars == 3


@pytest.mark.parametrize(("name", "message"), [("text.txt", r"U\+0063"), ("no.txt", r"no\.txt")])
def test_a_character_that_the_model_lacks_and_a_missing_file_are_named(tmp_path, name, message):
    (tmp_path / "text.txt").write_text("abc", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        score_of(tmp_path / name)
