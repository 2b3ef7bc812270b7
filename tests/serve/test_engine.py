"""The queue, the rows of the batch, and clients that leave."""

from __future__ import annotations

import asyncio
import threading
from itertools import product

import numpy as np
import pytest

from charjax.inference.options import Controls, Sampling
from charjax.inference.scoring.evaluate import char_nats
from charjax.inference.texts.prompt import Prompt
from charjax.serve import engine, runners
from charjax.serve.errors import ProtocolError
from charjax.serve.jobs import Choice, PieceQueue
from charjax.serve.limits import RequestLimits
from charjax.serve.text import Writing
from tests.serve.asgi import complete, post, request
from tests.serve.conftest import RANDOM, Server
from tests.serve.test_completions import samples

ENDLESS = {"prompt": "a", "max_tokens": 10**6, "seed": 1}
LIMITS = RequestLimits(max_tokens=10**6, max_queue=3)


@pytest.fixture(scope="module")
def small(small_batches):
    served = Server({"random": RANDOM}, LIMITS)
    yield served
    served.close()


def rows(server):
    """The texts in the rows of the batches."""
    slots = server.models["random"].engine._slots
    return [text for runner in slots.values() for text in runner.texts]


def waits_for(condition):
    async def wait():
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0.005)
        raise TimeoutError

    return wait()


def test_a_client_that_reads_nothing_keeps_its_row_until_the_time_limit(small):
    async def stall():  # nobody waits for the pieces, as where sending an event blocks
        pieces = PieceQueue(1, 1)
        prompt = Prompt(np.zeros(1, np.int32), 0)
        writing = Writing(RANDOM.vocab, Sampling(), Controls(), 10**6, None, False)
        model = small.models["random"]
        model.engine.submit([Choice(writing, prompt, 0, 0, pieces)])
        await waits_for(lambda: len(rows(small)) == 1)
        await waits_for(lambda: not rows(small))
        with pytest.raises(ProtocolError, match="within 1 s"):
            [part async for part in pieces]

    asyncio.run(stall())


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(small, stream):
    async def leave():
        gone = asyncio.Event()
        leaves = {"until": lambda sent: sent.count(b"\n\n") > 2} if stream else {"gone": gone}
        body = ENDLESS | {"stream": stream}
        asked = asyncio.ensure_future(request(small.app, "POST", "/v1/completions", body, **leaves))
        await waits_for(lambda: len(rows(small)) == 1)
        gone.set()
        await waits_for(lambda: not rows(small))
        return await asked

    assert asyncio.run(leave()).status == (200 if stream else 499)


@pytest.mark.parametrize("cut_off", ["read_body", "whole_answer"])
def test_what_the_end_of_the_server_cuts_off_is_an_error_of_the_protocol(
    cut_off, small, monkeypatch
):
    async def cancelled(*_):
        raise asyncio.CancelledError

    monkeypatch.setattr(f"charjax.serve.app.{cut_off}", cancelled)
    response = post(small.app, "/v1/completions", {"prompt": "a", "max_tokens": 1})
    assert response.status == 503
    assert "shutting down" in response.json["error"]["message"]


def test_requests_beyond_the_queue_are_refused(small, monkeypatch):
    """Four rows and three places: of ten endless texts seven are taken, and three refused."""
    monkeypatch.setattr(runners, "_YOUNG", 10**9)  # so that all texts are in the large batch
    app = small.app

    async def ask():
        gone = asyncio.Event()
        endless = [request(app, "POST", "/v1/completions", ENDLESS, gone=gone) for _ in range(7)]
        taken = [asyncio.ensure_future(one) for one in endless[:4]]
        await waits_for(lambda: len(rows(small)) == 4)
        taken += [asyncio.ensure_future(one) for one in endless[4:]]
        await waits_for(lambda: len(small.models["random"].engine._waiting) == 3)
        refused = [await request(app, "POST", "/v1/completions", ENDLESS) for _ in range(3)]
        gone.set()
        await asyncio.gather(*taken)
        await waits_for(lambda: not rows(small))
        return refused

    for response in asyncio.run(ask()):
        assert (response.status, response.json["error"]["code"]) == (429, "queue_full")
        assert response.json["error"]["type"] == "rate_limit_error"
        assert int(response.headers["retry-after"]) >= 1
    assert complete(app, max_tokens=3)["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("more", [{}, {"logprobs": 2, "echo": True}], ids=["plain", "logprobs"])
def test_a_text_that_waits_or_moves_to_the_large_batch_is_the_same(small, more, monkeypatch):
    moved, gather = [], runners.SlotRunner._gather

    def watched(self):
        before = len(self._batches[0].rows)
        gather(self)
        moved.append(before - len(self._batches[0].rows))

    monkeypatch.setattr(runners.SlotRunner, "_gather", watched)
    body = {"prompt": "ab", "seed": 4, "max_tokens": 30} | more
    alone = complete(small.app, **body)

    async def ask(number):
        return await asyncio.gather(
            *(request(small.app, "POST", "/v1/completions", body) for _ in range(number))
        )

    for number in (4, 7):  # the rows of the large batch; and three that wait
        for response in asyncio.run(ask(number)):
            assert response.json["choices"] == alone["choices"]
    assert max(moved) > 0


def test_an_error_of_the_model_is_an_answer_and_the_server_goes_on(small, monkeypatch, caplog):
    def fail(self):
        raise RuntimeError("the model is broken")

    with monkeypatch.context() as patch:
        patch.setattr(runners.SlotRunner, "advance", fail)
        response = post(small.app, "/v1/completions", {"prompt": "a"})
    assert (response.status, response.json["error"]["type"]) == (500, "server_error")
    assert "the model is broken" in caplog.text
    assert "broken" not in response.body.decode()
    assert complete(small.app, max_tokens=3)


def test_what_requests_without_controls_need_is_compiled_before_them(small_batches, monkeypatch):
    ran = []
    monkeypatch.setattr(
        runners._Batch,
        "advance",
        lambda batch, n: ran.append((len(batch._rows), batch._slots._program.num_top, n)),
    )
    Server({"random": RANDOM}, LIMITS, warm_up=True).close()
    num_top = (None, len(RANDOM.vocab))
    assert set(ran) == {*product(runners._SIZES, num_top, (2, 4, 8))}


def test_a_closed_engine_takes_no_more(small_batches):
    served = Server({"random": RANDOM}, LIMITS)
    threads = threading.active_count()
    served.close()
    assert threading.active_count() == threads - 1
    response = post(served.app, "/v1/completions", {"prompt": "a"})
    assert response.status == 503
    with pytest.raises(ProtocolError):
        served.models["random"].engine.submit([])


def test_without_batch_invariant_matmuls_requests_take_turns(small_batches, monkeypatch):
    """Each is run as `Sampler` runs it, so that its texts are the same there, too."""
    monkeypatch.setattr(engine, "is_batch_invariant", lambda config: False)
    served = Server({"random": RANDOM}, LIMITS)
    bodies = [
        {"prompt": "ab"[: i % 3], "n": 1 + i % 2, "seed": i, "max_tokens": 300, "temperature": 0.9}
        for i in range(4)
    ]

    async def ask_all():
        return await asyncio.gather(
            *(request(served.app, "POST", "/v1/completions", body) for body in bodies)
        )

    for body, response in zip(bodies, asyncio.run(ask_all()), strict=True):
        want = samples(body["prompt"], 300, body["n"], seed=body["seed"], temperature=0.9)
        assert [choice["text"] for choice in response.json["choices"]] == want
    echo = {"prompt": "abcabc", "echo": True, "logprobs": 2, "seed": 1, "max_tokens": 5}
    (choice,) = complete(served.app, **echo)["choices"]
    (text,) = samples("abcabc", 5, seed=1)
    assert choice["text"] == "abcabc" + text
    assert len(choice["logprobs"]["tokens"]) == 11
    nats = char_nats(RANDOM.config.model, RANDOM.params, RANDOM.vocab.encode(choice["text"]))
    np.testing.assert_allclose(choice["logprobs"]["token_logprobs"][1:], -nats, atol=1e-4)
    served.close()
