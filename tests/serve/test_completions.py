"""POST /v1/completions: the texts of `charjax sample`, in the protocol's form."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from charjax.inference.options import Sampling
from charjax.inference.scoring.evaluate import char_nats
from charjax.inference.texts.sampler import sample_texts
from charjax.serve.limits import RequestLimits
from tests.serve.asgi import complete, post, request
from tests.serve.conftest import BYTES, RANDOM


def samples(prompt, num_chars, num_samples=1, model=RANDOM, **options):
    sampling = Sampling(**options)
    return list(
        sample_texts(
            model.config.model,
            model.params,
            model.vocab,
            prompt,
            num_chars=num_chars,
            num_samples=num_samples,
            sampling=sampling,
        )
    )


def texts(answer):
    assert [choice["index"] for choice in answer["choices"]] == [*range(len(answer["choices"]))]
    return [choice["text"] for choice in answer["choices"]]


def test_a_choice_is_a_sample_of_the_seed(app):
    answer = complete(app, prompt="ab", n=3, seed=5, max_tokens=20)
    assert texts(answer) == samples("ab", 20, 3, seed=5)
    assert (answer["object"], answer["model"], answer["seed"]) == ("text_completion", "random", 5)
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 60, "total_tokens": 62}


def test_the_defaults_are_those_of_the_protocol(app):
    answer = complete(app, seed=1)
    assert texts(answer) == samples("", 16, seed=1, temperature=1.0)
    assert answer["choices"][0]["logprobs"] is None
    nulls = dict.fromkeys(("prompt", "n", "max_tokens", "temperature", "top_p", "stop", "stream"))
    assert texts(complete(app, seed=1, **nulls)) == texts(answer)


def test_the_default_length_is_within_the_limit_of_the_server(server):
    app = server.with_options(RequestLimits(max_tokens=8))
    assert complete(app, prompt="a")["usage"]["completion_tokens"] == 8


def test_without_a_seed_one_is_drawn_and_returned(app):
    first, second = (complete(app, prompt="a") for _ in range(2))
    assert first["seed"] != second["seed"]
    assert texts(complete(app, prompt="a", seed=first["seed"])) == texts(first)


@pytest.mark.parametrize("prompt", ["ab", ["ab"], [0, 1], [[0, 1]]])
def test_a_prompt_is_a_text_or_ids(app, prompt):
    assert texts(complete(app, prompt=prompt, seed=2)) == samples("ab", 16, seed=2)


@pytest.mark.parametrize("prompt", ["", [], [[]]])
def test_an_empty_prompt_is_the_start_token(app, prompt):
    answer = complete(app, prompt=prompt, seed=2, echo=True)
    assert texts(answer) == samples("", 16, seed=2)


def test_choices_of_several_prompts_come_prompt_by_prompt(app):
    answer = complete(app, prompt=["a", "bc"], n=2, seed=3, echo=True)
    want = [prompt + text for prompt in ("a", "bc") for text in samples(prompt, 16, 2, seed=3)]
    assert texts(answer) == want


def test_requests_at_the_same_time_get_the_texts_that_each_gets_alone(app):
    """Of other prompts, seeds, lengths and temperatures, in one batch; more than it has rows."""
    asked = [
        {
            "prompt": "abcdefgh"[: i % 8],
            "seed": i,
            "max_tokens": 5 + 7 * (i % 5),
            "temperature": i % 3 / 2,
        }
        | ({"top_k": 3} if i % 4 == 1 else {})
        | ({"top_p": 0.7} if i % 4 == 2 else {})
        | ({"logprobs": 2} if i % 5 == 3 else {})
        for i in range(12)
    ]

    async def ask_all():
        return await asyncio.gather(*(request(app, "POST", "/v1/completions", a) for a in asked))

    for body, response in zip(asked, asyncio.run(ask_all()), strict=True):
        options = {
            name: body[name] for name in body.keys() & {"seed", "temperature", "top_k", "top_p"}
        }
        assert texts(response.json) == samples(body["prompt"], body["max_tokens"], **options)


def test_a_stream_has_the_pieces_of_the_same_answer(app):
    body = {"prompt": "ab", "n": 2, "seed": 5, "max_tokens": 20, "logprobs": 1, "echo": True}
    whole = complete(app, **body)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = post(app, "/v1/completions", body | options)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last = response.events
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    for choice in whole["choices"]:
        parts = [e["choices"][0] for e in events if e["choices"][0]["index"] == choice["index"]]
        assert len(parts) > 3
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["length"]
        joined = {
            name: [value for part in parts for value in part["logprobs"][name]]
            for name in choice["logprobs"]
        }
        assert joined == choice["logprobs"]
    assert {event["id"] for event in events} == {last["id"]}


# Where a text ends


def test_a_text_ends_before_a_stop_string_also_across_pieces(app):
    (text,) = samples("a", 300, seed=7)
    for stop in (text[40:45], text[101:103], text[0:1]):
        end = text.index(stop)
        stops = ["日", stop]  # the model cannot write the first
        answer = complete(app, prompt="a", seed=7, max_tokens=300, stop=stops)
        assert texts(answer) == [text[:end]]
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == end
        streamed = post(
            app,
            "/v1/completions",
            {"prompt": "a", "seed": 7, "max_tokens": 300, "stop": stop, "stream": True},
        )
        pieces = [event["choices"][0]["text"] for event in streamed.events]
        assert "".join(pieces) == text[:end]


def test_a_text_ends_after_its_lines(app):
    (text,) = samples("a", 300, seed=7)
    lines = text.split("\n")
    assert len(lines) > 4
    answer = complete(app, prompt="a", seed=7, max_tokens=300, until_lines=3)
    assert texts(answer) == ["".join(line + "\n" for line in lines[:3])]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_text_ends_with_its_document(app):
    answer = complete(app, model="names", temperature=0, max_tokens=100, echo=True)
    assert texts(answer) == ["abc"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert texts(complete(app, model="names", prompt="b", temperature=0)) == ["c"]


def test_a_character_of_several_bytes_is_never_torn(app):
    body = {"model": "bytes", "prompt": "é", "temperature": 0, "max_tokens": 17}
    assert texts(complete(app, **body)) == ["€😀é€😀\ufffd"]
    streamed = post(app, "/v1/completions", body | {"stream": True, "logprobs": 0})
    pieces = [event["choices"][0] for event in streamed.events]
    assert "".join(piece["text"] for piece in pieces) == "€😀é€😀\ufffd"
    logprobs = [piece["logprobs"] for piece in pieces]
    tokens = [token for part in logprobs for token in part["tokens"]]
    assert (len(tokens), tokens[0]) == (17, "bytes:\\xe2")
    offsets = [offset for part in logprobs for offset in part["text_offset"]]
    assert offsets == [0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5]


def test_a_byte_after_an_incomplete_character_is_part_of_the_next_one(app):
    ids = BYTES.vocab.encode_corpus("\xe2\xe2\xc3\xa9\xc3").tolist()
    answer = complete(app, model="bytes", prompt=ids, max_tokens=0, echo=True, logprobs=0)
    (choice,) = answer["choices"]
    assert choice["text"] == "\ufffd\ufffdé\ufffd"
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 2, 3]


# Log-probabilities


def test_the_logprobs_of_an_echo_are_the_score_of_the_text(app):
    text = "abcdefghijabcabcjjj"
    answer = complete(app, prompt=text, max_tokens=0, echo=True, logprobs=3)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text, "length")
    logprobs = choice["logprobs"]
    assert (logprobs["tokens"], logprobs["text_offset"]) == ([*text], [*range(len(text))])
    first, *rest = logprobs["token_logprobs"]
    assert first is None
    nats = char_nats(RANDOM.config.model, RANDOM.params, RANDOM.vocab.encode(text))
    np.testing.assert_allclose(rest, -nats, rtol=1e-4, atol=1e-5)
    for token, logprob, top in zip(text[1:], rest, logprobs["top_logprobs"][1:], strict=True):
        assert top[token] == logprob
        assert len(top) in (3, 4)
        assert sorted(top.values(), reverse=True)[2] >= logprob or len(top) == 3


def test_the_logprobs_of_a_text_are_those_of_its_echo(app):
    body = {"prompt": "ab", "seed": 5, "max_tokens": 20, "logprobs": 2}
    (choice,) = complete(app, **body, temperature=0.5, top_k=2)["choices"]
    echo = complete(app, prompt="ab" + choice["text"], max_tokens=0, echo=True, logprobs=2)
    want = echo["choices"][0]["logprobs"]
    assert choice["logprobs"]["tokens"] == want["tokens"][2:]
    np.testing.assert_allclose(
        choice["logprobs"]["token_logprobs"], want["token_logprobs"][2:], atol=1e-5
    )
    assert choice["logprobs"]["text_offset"] == [*range(20)]
    both = complete(app, **body, temperature=0.5, top_k=2, echo=True)["choices"][0]["logprobs"]
    np.testing.assert_allclose(both["token_logprobs"][1:], want["token_logprobs"][1:], atol=1e-5)
    assert both["text_offset"] == [*range(22)]


def test_the_first_character_of_a_document_has_a_logprob(app):
    answer = complete(app, model="names", prompt="abc", max_tokens=0, echo=True, logprobs=0)
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "c"]
    assert logprobs["token_logprobs"] == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_stop_string_takes_the_logprobs_of_its_tokens_away(app):
    (text,) = samples("a", 300, seed=7)
    end = text.index(text[40:45])
    answer = complete(app, prompt="a", seed=7, max_tokens=300, stop=text[40:45], logprobs=0)
    assert "".join(answer["choices"][0]["logprobs"]["tokens"]) == text[:end]


def test_the_logprobs_of_all_tokens_are_a_distribution(app):
    answer = complete(app, prompt="abc", max_tokens=1, logprobs=11)
    (top,) = answer["choices"][0]["logprobs"]["top_logprobs"]
    assert set(top) == set(RANDOM.vocab.characters)
    assert sum(map(math.exp, top.values())) == pytest.approx(1, abs=1e-5)


# Controls


def test_controls_are_those_of_the_command(app):
    body = {"prompt": "a", "seed": 3, "max_tokens": 60}
    assert "b" not in texts(complete(app, **body, forbid="b"))[0]
    assert set(texts(complete(app, **body, only="cd"))[0]) == {"c", "d"}
    assert set(texts(complete(app, **body, logit_bias={"4": 100}))[0]) == {"e"}
    assert texts(complete(app, **body, min_p=1)) == samples("a", 60, temperature=0.0)
    assert texts(complete(app, **body, top_k=-1)) == samples("a", 60, seed=3)
