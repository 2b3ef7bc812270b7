"""Passages that the training text has, too."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from charjax.config import Config, DataConfig
from charjax.data.vocab import Vocab
from charjax.inference.sampling.copying import forbidden_tokens
from charjax.inference.training_text import training_text
from charjax.serve.copies import copied_passages, table_against_copying
from charjax.serve.errors import ProtocolError
from tests.inference import scripted
from tests.serve.asgi import complete
from tests.serve.conftest import Server

TEXT = "It was a dark and stormy night; the rain fell in torrents. " * 2


@pytest.fixture
def trained(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, "utf-8")
    return scripted.trained_on(scripted.cycle(11), DataConfig(path=str(file)))


@pytest.mark.parametrize(
    ("text", "passages"),
    [
        ("", []),
        ("a dark", []),
        ("a dark and stormy", [(0, 17)]),
        ("He saw a dark and stormy sea; the rain fell hard", [(6, 25), (28, 44)]),
        ("a dark anda dark and", [(0, 10), (10, 20)]),
        (TEXT, [(0, len(TEXT))]),
    ],
)
def test_the_passages_are_the_longest_ones(trained, text, passages):
    assert copied_passages(trained, text, 10) == passages


def test_a_text_that_is_gone_or_changed_is_said(trained):
    other = replace(trained.run.corpus, sha256="00")
    changed = scripted.changed(trained, corpus=other)
    gone = scripted.changed(trained, config=Config(data=DataConfig(path="/no/such/file")))
    for model in (changed, gone):
        with pytest.raises(ProtocolError) as error:
            copied_passages(model, "a", 10)
        assert (error.value.status, error.value.code) == (404, "no_text")


@pytest.mark.parametrize("asks", [copied_passages, table_against_copying])
def test_a_text_that_comes_back_is_found_without_a_restart(asks, trained, caplog):
    file = Path(trained.config.data.path)
    file.rename(file.with_suffix(".away"))
    arguments = ("a dark and stormy", 10) if asks is copied_passages else (10,)
    for _ in range(2):
        with pytest.raises(ProtocolError):
            asks(trained, *arguments)
    assert len(caplog.messages) == 1  # a page asks after every text
    file.with_suffix(".away").rename(file)
    assert asks(trained, *arguments)


def test_a_text_too_large_for_the_memory_of_a_server_is_said(trained, monkeypatch):
    monkeypatch.setattr("charjax.serve.copies._MAX_CHARS", len(TEXT) - 1)
    with pytest.raises(ProtocolError, match="too large"):
        copied_passages(trained, "a dark and stormy", 11)


@pytest.mark.parametrize("asks", [copied_passages, table_against_copying])
def test_requests_at_the_same_time_read_the_text_once(asks, trained, monkeypatch):
    """The hashes of a large text take gigabytes."""
    read = []

    def slow_text(*arguments):
        read.append(arguments)
        time.sleep(0.2)
        return training_text(*arguments)

    monkeypatch.setattr("charjax.serve.copies.training_text", slow_text)
    arguments = ("a dark and stormy", 12) if asks is copied_passages else (12,)
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda _: asks(trained, *arguments), range(4)))
    assert len(read) == 1


def cycle_of(tmp_path, **changes):
    """A model whose run was trained on a text with these characters."""
    file = tmp_path / "text.txt"
    file.write_text("abcdefghij\n" * 9, "utf-8")
    return scripted.trained_on(scripted.cycle(11), DataConfig(path=str(file)), **changes)


def test_models_of_one_text_may_have_different_vocabularies(tmp_path):
    for characters in ("abcdefghij\n", "jihgfedcba\n"):
        vocab = Vocab(tuple(characters), "codepoint", False)
        table = table_against_copying(cycle_of(tmp_path, vocab=vocab), 4)
        (forbidden,) = forbidden_tokens(table, vocab.encode("abcd")[None], len(vocab))
        assert vocab.decode(np.flatnonzero(forbidden)) == "e"


def test_max_copy_is_that_of_the_command(small_batches, tmp_path):
    model = cycle_of(tmp_path)
    served = Server({"cycle": model})
    body = {"prompt": "a", "temperature": 0, "max_tokens": 40}
    (free,) = complete(served.app, **body)["choices"]
    (kept,) = complete(served.app, **body, max_copy=4)["choices"]
    served.close()
    pieces = scripted.written(
        model, "a", num_chars=40, temperature=0.0, max_copy=4, show_prompt=False
    )
    assert copied_passages(model, free["text"], 30) == [(0, 40)]
    assert kept["text"] == "".join(pieces)
    assert copied_passages(model, "a" + kept["text"], 5) == []


@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_text_ends_where_each_character_would_copy_too_much(logprobs, small_batches, tmp_path):
    """After "abcd" only "e" may come, after which a passage of five characters would be copied."""
    served = Server({"cycle": cycle_of(tmp_path)})
    body = {"prompt": "abcd", "only": "e", "max_copy": 4, "echo": True, "logprobs": logprobs}
    (choice,) = complete(served.app, **body)["choices"]
    served.close()
    assert (choice["text"], choice["finish_reason"]) == ("abcd", "stop")
    assert logprobs is None or choice["logprobs"]["tokens"] == ["a", "b", "c", "d"]
