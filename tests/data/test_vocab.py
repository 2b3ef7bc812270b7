from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.data.reading.units import bytes_to_text
from charjax.data.vocab import Vocab
from charjax.errors import InputError

# Everything but surrogates: astral, combining, controls, NUL.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def bytes_of(text: str) -> str:
    """A text as a corpus of bytes holds it."""
    return bytes_to_text(text.encode("utf-8"))


def vocab_of(text: str, *, order="sorted", unit="codepoint", unk=False) -> Vocab:
    corpus_text = bytes_of(text) if unit == "byte" else text
    return Vocab.from_text(corpus_text, order=order, unit=unit, unk=unk)


@given(TEXTS, st.sampled_from(["sorted", "appearance"]), st.sampled_from(["codepoint", "byte"]))
def test_decode_inverts_encode(text, order, unit):
    vocab = vocab_of(text, order=order, unit=unit)
    ids = vocab.encode(text)
    assert ids.dtype == np.int32
    assert vocab.decode(ids) == text


@given(TEXTS)
def test_a_byte_vocabulary_has_one_id_a_byte_of_utf8(text):
    vocab = vocab_of(text, unit="byte")
    assert len(vocab.encode(text)) == len(text.encode("utf-8"))
    np.testing.assert_array_equal(vocab.encode(text), vocab.encode_corpus(bytes_of(text)))


@given(TEXTS, st.sampled_from(["codepoint", "byte"]), st.integers(1, 5))
def test_streamed_decoding_equals_decoding_at_once(text, unit, size):
    vocab = vocab_of(text, unit=unit)
    ids, decoder = vocab.encode(text), vocab.decoder()
    pieces = [decoder.decode(ids[i : i + size]) for i in range(0, len(ids), size)]
    assert "".join(pieces) + decoder.flush() == text


@given(st.lists(st.integers(0, 255), min_size=1))
def test_invalid_utf8_streams_as_it_decodes(values):
    vocab = Vocab(tuple(map(chr, range(256))), "byte", unk=False)
    decoder = vocab.decoder()
    streamed = "".join(decoder.decode(np.array([v])) for v in values) + decoder.flush()
    expected = bytes(values).decode("utf-8", errors="replace")
    assert streamed == vocab.decode(np.array(values)) == expected


@given(TEXTS)
def test_json_round_trip(text):
    for vocab in (vocab_of(text, unk=True), vocab_of(text, unit="byte")):
        assert Vocab.from_json(json.loads(json.dumps(vocab.to_json()))) == vocab


def test_the_order_of_characters():
    assert vocab_of("hello", order="sorted").characters == ("e", "h", "l", "o")
    assert vocab_of("hello", order="appearance").characters == ("h", "e", "l", "o")
    np.testing.assert_array_equal(vocab_of("hello").encode("hole"), [1, 3, 2, 0])


def test_an_order_that_there_is_not_is_refused():
    with pytest.raises(InputError, match=r"^vocabulary: order='size' must be sorted or appearance"):
        vocab_of("hello", order="size")


def test_encoding_does_not_depend_on_internal_chunks():
    vocab = vocab_of("ab")
    text = "ab" * (1 << 20) + "a"
    ids = vocab.encode_corpus(text)
    np.testing.assert_array_equal(ids, np.arange(len(text)) % 2)


def test_empty_text_has_no_ids():
    assert vocab_of("a").encode("").shape == (0,)
    assert vocab_of("a").decode(np.array([], np.int32)) == ""


def test_unk_is_the_last_id_and_decodes_to_the_replacement_character():
    vocab = vocab_of("ab", unk=True)
    assert (len(vocab), vocab.unk_id) == (3, 2)
    np.testing.assert_array_equal(vocab.encode("aßb", unknown="unk"), [0, 2, 1])
    assert vocab.decode(np.array([0, 2, 1])) == "a\ufffdb"
    assert (len(vocab_of("ab")), vocab_of("ab").unk_id) == (2, None)


def test_unk_among_bytes_decodes_to_the_replacement_character():
    vocab = vocab_of("ab", unit="byte", unk=True)
    assert vocab.decode(vocab.encode("axb", unknown="unk")) == "a\ufffdb"


@pytest.mark.parametrize(
    ("unit", "text", "message"),
    [
        (
            "codepoint",
            "a日b\u2028日\n",
            r"U\+65E5 '日' \(2x\), .*U\+2028 '\\u2028' .*U\+000A",
        ),
        ("codepoint", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", r"U\+0041 'A' .*and 18 more;"),
        ("byte", "日", "byte 0xE6"),
    ],
)
def test_unknown_characters_are_listed_with_counts_on_one_line(unit, text, message):
    with pytest.raises(InputError, match=message) as caught:
        vocab_of("abc", unit=unit).encode(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("unk", [False, True])
def test_unknown_characters_are_an_error_unless_both_sides_allow_them(unk):
    with pytest.raises(InputError, match="--unknown=unk" if unk else "data.unk=True"):
        vocab_of("abc", unk=unk).encode("x", unknown="error" if unk else "unk")


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("text", [["a", "b"], b"ab", None])
def test_what_is_no_text_is_not_encoded(text):
    for encode in (vocab_of("ab").encode, vocab_of("ab").encode_prompt):
        with pytest.raises(InputError, match=r"^a text of type \w+: must be a str"):
            encode(text)


@pytest.mark.parametrize("unit", ["codepoint", "byte"])
def test_lone_surrogates_are_refused(unit):
    with pytest.raises(InputError, match=r"character 2 .*U\+DCFF"):
        vocab_of("ab", unit=unit).encode("ab\udcff")
    with pytest.raises(InputError, match=rf"character {1 << 20} .*U\+D800"):
        vocab_of("ab", unit=unit).encode("a" * (1 << 20) + "\ud800")
    with pytest.raises(InputError, match=r"U\+D800"):
        Vocab.from_text("\ud800", order="sorted", unit=unit, unk=False)


@pytest.mark.parametrize("ids", [[], [1, 0]])
def test_a_list_of_ids_is_decoded_as_an_array_of_them(ids):
    assert vocab_of("ab").decode(ids) == vocab_of("ab").decode(np.array(ids, np.int32))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("ids", "message"),
    [([0.0], "dtype float64: "), (1, r"shape \(\): "), ([[1]], r"shape \(1, 1\): ")],
)
def test_what_is_no_text_of_ids_is_not_decoded(ids, message):
    with pytest.raises(InputError, match=f"^token ids of {message}"):
        vocab_of("ab").decode(ids)


@pytest.mark.parametrize("ids", [[-1], [0, 2], [2**31 - 1]])
def test_no_id_outside_the_vocabulary_is_decoded(ids):
    with pytest.raises(IndexError):
        vocab_of("ab").decode(np.array(ids))


@pytest.mark.parametrize(("text", "start"), [("b\n a", "\n"), ("b a", " "), ("ba", "a")])
def test_the_start_token(text, start):
    vocab = vocab_of(text)
    assert vocab.characters[vocab.start] == start


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {"symbols": "ab", "unit": "codepoint"},
        {"symbols": "ab", "unit": "codepoint", "unk": False, "more": 1},
        {"symbols": ["a", "b"], "unit": "codepoint", "unk": False},
        {"symbols": "ab", "unit": "codepoint", "unk": 1},
        {"symbols": "ab", "unit": "word", "unk": False},
        {"symbols": "", "unit": "codepoint", "unk": False},
        {"symbols": "aba", "unit": "codepoint", "unk": False},
        {"symbols": "\ud800", "unit": "codepoint", "unk": False},
        {"symbols": "日", "unit": "byte", "unk": False},
    ],
)
def test_invalid_json_is_refused(values):
    with pytest.raises(InputError, match=r"vocabulary|surrogate"):
        Vocab.from_json(values)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("characters", [["a", ["b"]], [{"a"}], (1, 2), ("ab",), ("a", None)])
def test_what_are_no_characters_are_refused(characters):
    with pytest.raises(InputError, match=r"^vocabulary: every entry must be one character$"):
        Vocab(characters, "codepoint", False)


# The document boundary

WITH_BOUNDARY = Vocab(("a", "b"), "codepoint", True, boundary=True)


def test_the_boundary_is_the_id_after_the_characters_and_unk_the_last():
    assert (WITH_BOUNDARY.boundary_id, WITH_BOUNDARY.unk_id, len(WITH_BOUNDARY)) == (2, 3, 4)
    assert WITH_BOUNDARY.start == 2
    assert Vocab(("a", "b"), "codepoint", True).boundary_id is None


def test_a_boundary_decodes_to_nothing():
    assert WITH_BOUNDARY.decode(np.array([2, 0, 2, 1, 3], np.int32)) == "ab\ufffd"


def test_a_vocabulary_with_a_boundary_survives_json_and_others_are_as_before():
    assert Vocab.from_json(json.loads(json.dumps(WITH_BOUNDARY.to_json()))) == WITH_BOUNDARY
    assert "boundary" not in Vocab(("a",), "byte", False).to_json()
    with pytest.raises(InputError, match="boundary"):
        Vocab.from_json(WITH_BOUNDARY.to_json() | {"boundary": 1})
