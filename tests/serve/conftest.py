"""Servers with tiny models; their engines end with the session's module."""

from __future__ import annotations

import pytest

from charjax.data.vocab import Vocab
from charjax.serve import runners
from charjax.serve.app import make_app
from charjax.serve.engine import Engine
from charjax.serve.limits import RequestLimits
from charjax.serve.server import serve_model
from tests.inference.scripted import cycle, random_model, trained

LIMITS = RequestLimits(max_body=5000, max_prompt=60, max_tokens=5000, max_texts=12, max_queue=12)
RANDOM = trained(random_model(11), "abcdefghij\n")
NAMES = trained(cycle(4), "x", vocab=Vocab(("a", "b", "c"), "codepoint", False, boundary=True))
BYTES = trained(
    cycle(9),
    "x",
    vocab=Vocab(tuple("é€😀".encode().decode("latin-1")), "byte", False),
)


class Server:
    """An application, and the models behind it, which compile what a test needs, when it does."""

    def __init__(self, models, limits=LIMITS, *, warm_up=False):
        self.limits = limits
        with pytest.MonkeyPatch.context() as patch:
            if not warm_up:
                patch.setattr(Engine, "warm_up", lambda _: None)
            self.models = {name: serve_model(name, one, limits) for name, one in models.items()}

    def close(self):
        for model in self.models.values():
            model.engine.close()

    @property
    def app(self):
        return make_app(self.models, self.limits)

    def with_options(self, limits=LIMITS, **options):
        """The application with other options, before the same models."""
        return make_app(self.models, limits, **options)


@pytest.fixture(scope="session")
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runners, "_SIZES", (2, 4))
        patch.setattr(runners, "_SHORT", 2)
        patch.setattr(runners, "_LONG", 4)
        patch.setattr(runners, "_READING", 8)
        yield


@pytest.fixture(scope="module")
def server(small_batches):
    served = Server({"random": RANDOM, "names": NAMES, "bytes": BYTES})
    yield served
    served.close()


@pytest.fixture
def app(server):
    return server.app
