"""Prompts are encoded and samples decoded; a single text is streamed."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.inference.options import Sampling
from charjax.inference.sampling import groups
from charjax.inference.sampling.sampler import Sampler, sample
from charjax.inference.texts.end import TextEnd, decode_texts
from charjax.inference.texts.sampler import sample_texts
from tests.inference.scripted import cycle, random_model, trained, written

RANDOM = random_model(11)

ABC = trained(cycle(3), "abc")


def texts(model, prompt, **options):
    """The pieces that `charjax sample` would write."""
    return written(model, prompt, **{"num_chars": 5, "temperature": 0.0} | options)


def test_a_text_is_the_prompt_and_its_continuation():
    assert "".join(texts(ABC, "ab")) == "abcabca"
    assert "".join(texts(ABC, "ab", num_samples=3)) == "abcabca|abcabca|abcabca"


def test_an_empty_prompt_starts_from_the_start_token_without_showing_it():
    model = trained(cycle(3), "a\nb")  # its start token is the newline
    assert "".join(texts(model, "")) == "ba\nba"
    np.testing.assert_array_equal(model.vocab.encode_prompt(""), [1])


@pytest.mark.parametrize("num_samples", [1, 2, 8, 9, 17])
def test_no_characters_are_as_many_texts_as_asked_for(num_samples):
    pieces = texts(ABC, "ab", num_chars=0, num_samples=num_samples)
    assert "".join(pieces) == "|".join(["ab"] * num_samples)


def test_texts_are_the_samples():
    model = trained(RANDOM, "abcdefghijk")
    options = {"num_chars": 40, "num_samples": 9}
    given = options | {"sampling": Sampling(seed=4)}
    plain = list(sample_texts(model.config.model, model.params, model.vocab, "ab", **given))
    samples = sample(*RANDOM, np.array([0, 1], np.int32), masked=None, **given)
    ids = np.concatenate([np.concatenate(list(chunks), axis=1) for chunks in samples])
    assert plain == [model.vocab.decode(row) for row in ids]
    pieces = texts(model, "ab", seed=4, temperature=1.0, **options)
    assert "".join(pieces) == "|".join("ab" + text for text in plain)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("number", [np.int64, jnp.int32])
def test_numbers_of_numpy_and_jax_are_numbers(number):
    model = trained(RANDOM, "abcdefghijk")

    def write(chars, samples):
        sizes = {"num_chars": chars, "num_samples": samples, "sampling": Sampling()}
        return list(sample_texts(model.config.model, model.params, model.vocab, "ab", **sizes))

    assert write(number(5), number(3)) == write(5, 3)


def test_a_single_text_comes_as_it_is_written(monkeypatch):
    monkeypatch.setattr(groups, "_CHUNK", 4)
    pieces = texts(ABC, "ab", num_chars=10)
    assert len([piece for piece in pieces if piece]) > 3
    assert "".join(pieces) == "abcabcabcabc"


def test_a_character_of_several_bytes_is_never_torn(monkeypatch):
    bytes_ = tuple("é€😀".encode().decode("latin-1"))  # 2, 3 and 4 bytes, all different
    model = trained(cycle(9), "x", vocab=Vocab(bytes_, "byte", False))
    monkeypatch.setattr(groups, "_CHUNK", 2)
    pieces = texts(model, "é", num_chars=16)
    assert "".join(pieces) == "é€😀é€😀"
    assert texts(model, "é", num_chars=16, num_samples=2)[0] == "é€😀é€😀"
    assert "".join(texts(model, "é", num_chars=17)) == "é€😀é€😀\ufffd"  # one byte of two


def test_unknown_characters_are_an_error_or_unk():
    vocab = Vocab(("a", "b"), "codepoint", True)
    model = trained(cycle(3), "x", vocab=vocab)
    with pytest.raises(InputError, match=r"U\+007A"):
        texts(model, "az")
    pieces = texts(model, "az", unknown="unk")
    assert "".join(pieces) == "a\ufffdababa"  # [UNK] is read, but never written


# Documents

NAMES = trained(cycle(4), "x", vocab=Vocab(("a", "b", "c"), "codepoint", False, boundary=True))


@pytest.mark.parametrize("num_samples", [1, 3])
def test_a_text_ends_with_its_document(num_samples):
    # The cycle is a, b, c, boundary: a document from its boundary on is "abc".
    pieces = texts(NAMES, "", num_chars=1000, num_samples=num_samples)
    assert "".join(pieces) == "|".join(["abc"] * num_samples)
    assert "".join(texts(NAMES, "b", num_chars=1000)) == "bc"


def test_nothing_is_sampled_after_all_documents_have_ended(monkeypatch):
    monkeypatch.setattr(groups, "_CHUNK", 2)
    sampled = []

    def counted(chunks):
        for chunk in chunks:
            sampled.append(chunk.ids.shape[1])
            yield chunk

    samples = Sampler(NAMES.config.model, NAMES.params, masked=None).run(
        np.array([3], np.int32), num_chars=1000, num_samples=5, sampling=Sampling(temperature=0.0)
    )
    texts = decode_texts(map(counted, samples), lambda: TextEnd(NAMES.vocab, 1000))
    assert [(text.text, text.finished) for text in texts] == [("abc", "stop")] * 5
    assert sum(sampled) == 4


def test_the_prompt_need_not_be_written():
    assert "".join(texts(ABC, "ab", show_prompt=False)) == "cabca"
