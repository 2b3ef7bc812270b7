"""What texts may hold and where they end: the same text for any chunks and any number of texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.config import DataConfig
from charjax.data.corpus import load_corpus
from charjax.data.tokens.encoded_text import EncodedText
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.inference.options import Controls, Sampling
from charjax.inference.sampling.copying import copy_table, forbidden_tokens
from charjax.inference.texts import sampler as module
from charjax.inference.texts.controls import check_stops, restrict
from charjax.inference.texts.end import TextEnd
from charjax.inference.texts.pick import likeliest_words, pick_text
from charjax.inference.training_text import known_lines, training_text
from tests.inference.scripted import chain, memoryless, text_sampler, trained, trained_on, written

TEXT = "abc\n"
VOCAB = Vocab(tuple(TEXT), "codepoint", False)
RANDOM = trained(memoryless([1.0, 0.8, 0.6, 1.2]), TEXT)
DOCUMENTS = Vocab(("a", "b"), "codepoint", False, boundary=True)


def sampled(model, **options):
    """What `charjax sample` writes; `options` of `Controls` and of `Sampling`."""
    return "".join(written(model, **options))


# Where a text ends


@given(
    text=st.text("ab\n", max_size=30),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=2),
    until=st.integers(0, 3),
    unique=st.booleans(),
    cuts=st.lists(st.integers(0, 30), max_size=5),
)
def test_a_text_ends_in_the_same_place_however_it_is_cut(text, stops, until, unique, cuts):
    controls = Controls(stop=tuple(stops), until_lines=until, unique=unique)
    ids = VOCAB.encode(text)

    def read(cuts):
        end = TextEnd(VOCAB, 30, controls)
        pieces = [end.read(part) for part in np.split(ids, cuts)]
        return "".join([*pieces, end.flush()]), end.finished, end.num_tokens

    whole = read([])
    assert read(sorted(min(cut, len(ids)) for cut in cuts)) == whole
    assert not until or whole[0].count("\n") <= until
    if unique:
        *lines, _ = whole[0].split("\n")
        assert len(set(lines)) == len(lines)
        return
    assert text.startswith(whole[0])
    assert whole[2] == len(whole[0])
    assert not any(stop in whole[0] for stop in stops)
    if whole[1] == "length":
        assert whole[0] == text


@pytest.mark.parametrize(
    ("ids", "text", "num_tokens"),
    [
        ([0, 1, 0, 1, 2, 0, 1], "éé", 4),
        ([0, 2], "\ufffd", 1),  # the stop shows that the first of two bytes is alone
    ],
)
def test_tokens_of_bytes_are_counted_up_to_the_stop(ids, text, num_tokens):
    vocab = Vocab(tuple("é!".encode().decode("latin-1")), "byte", False)
    end = TextEnd(vocab, 100, Controls(stop=("!",)))
    assert end.read(np.array(ids, np.int32)) == text
    assert (end.finished, end.num_tokens) == ("stop", num_tokens)


def test_a_text_ends_before_its_stop_text_and_after_its_lines():
    plain = sampled(RANDOM)
    assert "ab" in plain
    assert sampled(RANDOM, stop=("ab",)) == plain[: plain.index("ab")]
    assert sampled(RANDOM, until_lines=2) == "\n".join(plain.split("\n")[:2]) + "\n"
    many = sampled(RANDOM, stop=("ab",), num_samples=3).split("|")
    assert many[0] == plain[: plain.index("ab")]


# What it may hold


def test_forbidden_characters_are_not_sampled():
    assert set(sampled(RANDOM, forbid="ac")) == {"b", "\n"}
    assert set(sampled(RANDOM, only="ac")) == {"a", "c"}
    assert set(sampled(RANDOM, only="ac", forbid="a")) == {"c"}
    sampler = text_sampler(RANDOM, only="b")
    (text,) = sampler.texts(sampler.encode("a", "error"), num_chars=30, num_samples=1)
    assert text.text == "b" * 30


def test_min_p_keeps_what_is_likely_enough():
    model = trained(memoryless(np.log([0.5, 0.3, 0.15, 0.05])), TEXT)
    assert set(sampled(model, min_p=0.5)) == {"a", "b"}
    assert set(sampled(model, min_p=1.0)) == {"a"}
    # At temperature 1/2 the squares count: 0.25, 0.09, 0.0225, 0.0025.
    assert set(sampled(model, min_p=0.2, temperature=0.5)) == {"a", "b"}


def test_a_repetition_penalty_acts_in_its_window():
    model = trained(memoryless([2.0, 1.9, 1.8, -5.0]), TEXT)
    greedy = {"temperature": 0.0, "num_chars": 6, "prompt": "\n"}
    assert sampled(model, **greedy) == "\naaaaaa"
    assert sampled(model, repetition_penalty=1.5, repetition_window=1, **greedy) == "\nababab"
    assert sampled(model, repetition_penalty=1.5, repetition_window=2, **greedy) == "\nabcabc"


@pytest.mark.parametrize(
    "options",
    [
        {"min_p": 0.1},
        {"repetition_penalty": 1.4, "repetition_window": 3},
        {"forbid": "b"},
        {"stop": ("ca",)},
        {"until_lines": 3},
        {"unique": True},
    ],
)
def test_a_text_does_not_depend_on_how_many_are_asked_for(options):
    many = sampled(RANDOM, num_samples=9, **options).split("|")
    assert len(set(many)) > 1
    assert sampled(RANDOM, num_samples=2, **options).split("|") == many[:2]
    assert sampled(RANDOM, **options) == many[0]


# Lines and documents that are left out


def run_on(path, text, logits, *, documents):
    """A model whose run was trained on a text, as a file."""
    path.write_text(text, encoding="utf-8")
    data = DataConfig(path=str(path))
    if not documents:
        return trained_on(memoryless(logits), data)
    data = replace(data, documents="lines", boundary=True)
    return trained_on(memoryless(logits), data, vocab=DOCUMENTS)


def test_a_line_is_not_written_twice_and_not_copied(tmp_path):
    model = run_on(tmp_path / "t.txt", "ab\na\nb\n", [0.0, 0.0, 0.0], documents=False)
    plain = sampled(model, num_chars=300).split("\n")
    kept = sampled(model, num_chars=300, unique=True, new=True).split("\n")
    expected = list(dict.fromkeys(line for line in plain if line not in ("ab", "a", "b", "")))
    assert [line for line in kept if line] == expected


def test_the_beginning_of_a_line_in_the_prompt_counts(tmp_path):
    model = run_on(tmp_path / "t.txt", "ab\na\nb\n", [0.0, 0.0, 0.0], documents=False)
    plain = sampled(model, prompt="a", num_chars=300).split("\n")
    assert plain[0] != "ab"  # the seed's first line is not one of the text
    assert sampled(model, prompt="a", num_chars=300, new=True).split("\n")[0] == plain[0]


def test_the_lines_of_the_prompt_are_not_written_again():
    plain = sampled(RANDOM, num_chars=300).split("\n")
    *kept, _ = sampled(RANDOM, prompt="a\nb\n\n", num_chars=300, unique=True).split("\n")
    assert {"a", "b"} <= set(plain)
    assert kept[:3] == ["a", "b", ""]
    assert len(set(kept)) == len(kept) > 3


def test_documents_are_numbered_and_the_first_accepted_are_kept(tmp_path):
    model = run_on(tmp_path / "t.txt", "ab\na\nb\n", [0.0, 0.0, 0.0], documents=True)
    candidates = sampled(model, num_samples=200).split("|")
    expected = dict.fromkeys(text for text in candidates if text not in ("ab", "a", "b"))
    for n in (1, 5, 12):
        lines = sampled(model, until_lines=n, unique=True, new=True)
        assert lines == "".join(line + "\n" for line in list(expected)[:n])
    assert sampled(model, num_samples=3, unique=True, new=True) == "|".join(list(expected)[:3])
    assert sampled(model, until_lines=2, num_samples=2) == (
        "".join(f"{line}\n" for line in candidates[:2])
        + "|"
        + "".join(f"{line}\n" for line in candidates[2:4])
    )


@pytest.mark.parametrize(
    ("num_samples", "until_lines", "flag"),
    [(0, 1, "--num_samples"), (-1, 1, "--num_samples"), (1001, 1000, "--until_lines")],
)
def test_a_number_of_documents_out_of_range_is_refused(tmp_path, num_samples, until_lines, flag):
    model = run_on(tmp_path / "t.txt", "ab\na\nb\n", [0.0, 0.0, 0.0], documents=True)
    sampler = text_sampler(model, until_lines=until_lines)
    prompt = sampler.encode("", "error")
    with pytest.raises(InputError, match=flag):
        next(sampler.texts(prompt, num_chars=3, num_samples=num_samples))


def test_the_training_text_is_decoded_once_for_all_its_documents(tmp_path, monkeypatch):
    model = run_on(tmp_path / "t.txt", "ab\na\nb\n", [0.0, 0.0, 0.0], documents=True)
    decode, decoded = EncodedText.text, []
    monkeypatch.setattr(EncodedText, "text", lambda self: decoded.append(1) or decode(self))
    assert known_lines(model, training_text(model, "--new")) == {"ab", "a", "b"}
    assert len(decoded) == 1


def test_too_few_documents_are_said(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_MAX_REJECTED", 20)
    model = run_on(tmp_path / "t.txt", "a\nb\n", [-99.0, -99.0, 9.0], documents=True)
    with pytest.raises(InputError, match=r"^--unique, --new: found 1 of 3 texts; .*20"):
        sampled(model, until_lines=3, unique=True)


def test_another_training_text_or_none_is_refused(tmp_path):
    path = tmp_path / "t.txt"
    model = run_on(path, "ab\na\nb\n", [0.0, 0.0, 0.0], documents=False)
    path.write_text("other\n")
    with pytest.raises(InputError, match=r"^--new: .*t.txt is not the text .*bring that text back"):
        sampled(model, new=True)
    path.unlink()
    with pytest.raises(InputError, match=r"^--new: needs the text that this run was trained on: "):
        sampled(model, new=True)


def test_bytes_of_the_training_text_are_compared_as_text(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("é\n", encoding="utf-8")
    data = DataConfig(path=str(path), unit="byte")
    vocab = Vocab(tuple("é\n".encode().decode("latin-1")), "byte", False)
    model = trained_on(chain(9 * np.roll(np.eye(3), 1, axis=1)), data, vocab=vocab)
    assert sampled(model, temperature=0.0, num_chars=9) == "é\né\né\n"
    assert sampled(model, temperature=0.0, num_chars=9, new=True) == ""


# Passages that are not copied


def copied(text, source, length):
    """The passages of a text, one character longer than `length`, that the source has."""
    passages = {source[i : i + length + 1] for i in range(len(source) - length)}
    return [i for i in range(len(text) - length) if text[i : i + length + 1] in passages]


@pytest.mark.parametrize("length", [1, 3, 40])
def test_a_table_forbids_what_completes_a_copied_passage_and_nothing_else(tmp_path, length):
    rng = np.random.default_rng(length)
    text = "".join(rng.choice(list("abcd"), 500))
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    corpus = load_corpus(DataConfig(path=str(tmp_path / "t.txt")))
    vocab = Vocab(tuple("abcdefgh" + "".join(map(chr, range(1000, 1040)))), "codepoint", False)
    table = copy_table(corpus, vocab, length)
    contexts = [text[i : i + length] for i in range(500 - length)]
    contexts += ["".join(rng.choice(list("abcde"), length)) for _ in range(300)]
    recent = np.stack([vocab.encode(context) for context in contexts])
    forbidden = np.asarray(forbidden_tokens(table, recent, len(vocab)))
    assert forbidden.any()
    passages = {text[i : i + length + 1] for i in range(500 - length)}
    for context, row in zip(contexts, forbidden, strict=True):
        assert row.tolist() == [context + c in passages for c in vocab.characters]
    unread = np.full_like(recent, -1)
    assert not np.asarray(forbidden_tokens(table, unread, len(vocab))).any()


def test_no_passage_is_longer_than_max_copy(tmp_path):
    source = "ab\na\nb\nbba\n"
    model = run_on(tmp_path / "t.txt", source, [1.0, 0.0, 0.5], documents=False)
    prompt = "ab\na"  # part of the text itself, which counts
    plain = sampled(model, prompt=prompt, num_chars=200)
    text = sampled(model, prompt=prompt, num_chars=200, max_copy=4)
    assert copied(plain, source, 4)
    assert copied(text, source, 4) == []
    assert len(text) == len(plain)
    many = sampled(model, prompt=prompt, num_chars=200, max_copy=4, num_samples=7).split("|")
    assert many[0] == text
    assert sampled(model, num_chars=50, max_copy=500) == sampled(model, num_chars=50)


def test_a_text_ends_where_every_character_would_copy(tmp_path):
    model = run_on(tmp_path / "t.txt", "ab\nbb\naa\n\nba", [1.0, 0.0, 0.5], documents=False)
    # All pairs of the three characters but "\nb" occur, and that one too.
    assert sampled(model, prompt="b", max_copy=1) == "b"


def test_passages_are_parts_of_one_document(tmp_path):
    model = run_on(tmp_path / "t.txt", "ab\nba\n", [1.0, 1.0, -9.0], documents=True)
    texts = sampled(model, max_copy=1, num_samples=20).split("|")
    assert set("".join(texts)) == {"a", "b"}
    assert not any("ab" in text or "ba" in text for text in texts)
    assert any("bb" in text for text in texts)  # the end of one document and the next


# Words to pick from


def test_words_to_pick_from_begin_with_the_likeliest_characters():
    model = trained(chain(np.log([[0.1, 0.6, 0.3], [0.5, 0.1, 0.4], [0.4, 0.3, 0.3]])), "ab ")
    sampler = text_sampler(model)
    words = likeliest_words(sampler, sampler.encode("a", "error"), 2)
    assert [word[0] for word in words] == ["b", " "]
    assert words[0].startswith("bababa")
    forbidding = text_sampler(model, forbid="b")
    assert [w[0] for w in likeliest_words(forbidding, forbidding.encode("a", "error"), 2)] == [
        " ",
        "a",
    ]


def test_words_to_pick_from_are_valid_utf_8():
    vocab = Vocab(tuple("é ".encode().decode("latin-1")), "byte", False)  # C3, A9, a space
    to_first, to_last = [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]
    model = trained(chain([to_last, to_first, to_first]), "x", vocab=vocab)
    sampler = text_sampler(model)
    # After the space C3 is the likeliest, which a space follows, then A9; neither is a character.
    assert likeliest_words(sampler, sampler.encode(" ", "error"), 3) == [" "]


def test_picked_text_is_what_the_model_reads(tmp_path):
    (tmp_path / "text.txt").write_text("ab é\n", encoding="utf-8")
    data = DataConfig(path=str(tmp_path / "text.txt"), lowercase=True)
    vocab = Vocab(tuple("ab é\n"), "codepoint", True)
    sampler = text_sampler(trained_on(memoryless([1.0] * 6), data, vocab=vocab))
    typed = iter(["B A", "E\u0301", "日", ""])
    start = sampler.encode("A", "unk")
    picked = list(pick_text(sampler, start, 1, lambda words, problem: next(typed), unknown="unk"))
    assert picked == ["b a", "b aé", "b aé\ufffd"]
    whole = sampler.encode("AB AE\u0301日", "unk").text(vocab)
    assert start.text(vocab) + picked[-1] == whole


def test_words_to_pick_from_copy_no_passage(tmp_path):
    model = run_on(tmp_path / "t.txt", "ab\n", [1.0, 3.0, 2.0], documents=False)
    sampler = text_sampler(model, max_copy=1)
    words = likeliest_words(sampler, sampler.encode("a", "error"), 3)
    assert [word[0] for word in words] == ["\n", "a"]  # the likeliest, b, would copy "ab"


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": ("",)}, "--stop=: "),
        ({"only": "ab", "forbid": "ba"}, "--forbid=ba: leaves none of --only=ab"),
        ({"forbid": "z"}, "--forbid=z: 'z' is not in the vocabulary"),
        ({"only": "az"}, "--only=az: 'z' is not in the vocabulary"),
        ({"forbid": "abc\n"}, "--forbid=abc\n: leaves no character"),
        ({"until_lines": 2, "only": "ab"}, "--until_lines=2: the newline is forbidden"),
        ({"stop": ("b", "a.")}, "--stop=a.: '.' is not in the vocabulary"),
        ({"stop": ("ab",), "only": "ac"}, "--stop=ab: 'b' is forbidden, so that no text ends"),
        ({"stop": ("a",), "logit_bias": ((0, -np.inf),)}, "--stop=a: 'a' is forbidden"),
    ],
)
def test_controls_that_cannot_be_met_are_refused(options, message):
    with pytest.raises(InputError) as caught:
        sampled(RANDOM, **options)
    assert str(caught.value).startswith(message)


def test_a_stop_text_of_bytes_may_be_any_that_they_write_and_characters_are_ascii():
    vocab = Vocab(tuple("é\n".encode().decode("latin-1")), "byte", False)
    for stop in ("é\n", "\ufffd"):  # invalid bytes are decoded as U+FFFD
        check_stops(Controls(stop=(stop,)), Sampling(), vocab)
    for stop in ("è", "a"):
        with pytest.raises(InputError, match=rf"^--stop={stop}: '{stop}' is not in the vocabulary"):
            check_stops(Controls(stop=(stop,)), Sampling(), vocab)
    with pytest.raises(InputError, match=r"^--forbid=é: the tokens of this model are bytes"):
        restrict(Sampling(), Controls(forbid="é"), vocab)
