"""Large texts in memory are read and encoded once: later runs read their tokens."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from charjax.config import Config, DataConfig
from charjax.data import corpus as corpus_module
from charjax.data.corpus import load_corpus
from charjax.data.dataset import load_dataset
from charjax.data.tokens import cached_text, text_cache

TEXT = "".join(f"Line {i}, {'o' * (i % 7)}λ\r\n" for i in range(300))


@pytest.fixture
def text(tmp_path, monkeypatch) -> Path:
    """A text that is large enough to be cached, written a while ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(text_cache, "MIN_BYTES", 1000)
    monkeypatch.setattr(cached_text, "_PART", 1 << 10)
    monkeypatch.setattr(text_cache, "_RECENT_NS", 0)
    monkeypatch.setattr(text_cache, "start_thread", lambda write: write())
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the texts that are read and encoded, not taken from the cache."""
    names: list[str] = []
    real = corpus_module._make_corpus

    def make_corpus(name, *arguments):
        names.append(name)
        return real(name, *arguments)

    monkeypatch.setattr(corpus_module, "_make_corpus", make_corpus)
    return names


def entries(text: Path) -> list[Path]:
    return sorted((text.parent / "cache" / "charjax" / "texts").glob("*"))


def load(text: Path, **options):
    return load_corpus(DataConfig(path=str(text), **options))


def assert_equal(one, other) -> None:
    assert (one.text, one.sha256, one.chars) == (other.text, other.sha256, other.chars)
    assert (one.notice, one.rules) == (other.notice, other.rules)
    assert list(one.characters) == list(other.characters)
    np.testing.assert_array_equal(one.document_starts, other.document_starts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"documents": "lines"},
        {"documents": "lines", "boundary": False, "newlines": "unix"},
        {"documents": "lines", "shuffle_documents": True, "vocabulary": "appearance"},
        {"unit": "byte"},
    ],
)
def test_a_text_from_the_cache_is_the_text(text, reads, caplog, options):
    text.write_bytes(b"\xef\xbb\xbf" + TEXT.encode() + b"\n\n")
    caplog.set_level("INFO", "charjax")
    wanted = load_corpus(DataConfig(path=str(text), **options), use_cache=False)
    config = Config(data=DataConfig(path=str(text), batch_size=2, seq_len=8, **options))
    caplog.clear()
    first = load_dataset(config)
    said = caplog.messages
    caplog.clear()
    second = load_dataset(config)
    assert caplog.messages == said
    assert len(reads) == 2
    assert first.vocab == second.vocab
    for one, other in zip(first.splits, second.splits, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        assert one.ids.dtype == other.ids.dtype
    assert_equal(load(text, **options), wanted)


@pytest.mark.parametrize("documents", ["none", "lines", "files"])
def test_a_run_and_the_cache_have_the_tokens_in_memory_once(text, monkeypatch, documents):
    cached: list[np.ndarray] = []

    def write(file, content):
        cached.append(content[0].tokens)
        cached_text.write_cached(file, content)

    def read(path):
        found = cached_text.read_cached(path)
        cached.append(found[0].tokens)
        return found

    monkeypatch.setattr(text_cache, "write_cached", write)
    monkeypatch.setattr(text_cache, "read_cached", read)
    data = DataConfig(path=str(text), documents=documents, split=(1.0, 0.0, 0.0), batch_size=2)
    for number in range(1, 3):  # the text is read, then comes from the cache
        ids = load_dataset(Config(data=data)).splits.train.ids
        assert len(cached) == number
        assert np.shares_memory(ids, cached[-1])


def test_a_text_of_more_than_256_characters(text, reads):
    text.write_text(TEXT + "".join(map(chr, range(0x4E00, 0x4E00 + 400))), "utf-8")
    assert_equal(load(text), load(text))
    assert len(reads) == 1


def test_a_text_that_changed_is_read_again(text, reads):
    load(text)
    status = text.stat()
    text.write_bytes(TEXT.replace("Line 7,", "Line 8,").encode())
    os.utime(text, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert text.stat().st_size == status.st_size
    assert "Line 7," not in load(text).text
    assert len(reads) == 2


def test_other_reading_options_read_the_text_again(text, reads):
    assert load(text).text == TEXT
    assert load(text, lowercase=True).text == TEXT.lower()
    assert len(reads) == 2


def test_small_and_changing_texts_are_not_cached(text, reads, monkeypatch):
    monkeypatch.setattr(text_cache, "_RECENT_NS", 10**12)
    load(text)
    monkeypatch.setattr(text_cache, "MIN_BYTES", 1 << 24)
    load(text)
    assert (entries(text), len(reads)) == ([], 2)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_entry_is_made_again(text, reads, damage):
    text.write_bytes(TEXT.encode() + "".join(map(chr, range(0x4E00, 0x4F00))).encode())
    wanted = load(text, documents="lines")
    [entry] = entries(text)
    good = entry.read_bytes()
    line = good.index(b"\n")
    places = [0, 3, 8, 30, line // 2, line, line + 1, *range(line + 2, len(good), 2500), -1]
    for number, place in enumerate(places if damage != "delete" else [0]):
        data = bytearray(good)
        data[place] ^= 4
        entry.write_bytes(data if damage == "flip" else data[:place])
        if damage == "delete":
            entry.unlink()
        assert_equal(load(text, documents="lines"), wanted)
        assert len(reads) == number + 2
        assert entry.read_bytes() == good
    assert_equal(load(text, documents="lines"), wanted)
    assert len(reads) == number + 2


def test_a_disk_without_room_costs_only_the_saving(text, reads, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(text_cache, "write_cached", full)
    assert load(text).text == load(text).text == TEXT
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert load(text).text == TEXT
    monkeypatch.setattr(text_cache, "private_cache_folder", lambda _: None)
    assert load(text).text == TEXT
    assert (entries(text), len(reads)) == ([], 4)


def test_a_cache_that_cannot_be_written_is_read(text, reads, monkeypatch):
    def read_only(*_):
        raise OSError(30, "Read-only file system")

    load(text)
    for module, name in ((os, "utime"), (os, "unlink"), (text_cache, "write_cached")):
        monkeypatch.setattr(module, name, read_only)
    assert load(text).text == TEXT
    assert len(reads) == 1


def test_old_and_surplus_entries_are_deleted(text, monkeypatch):
    found: list[Path] = []
    for name in "abc":
        path = text.with_name(f"{name}.txt")
        path.write_bytes(TEXT.encode())
        load(path)
        found += set(entries(text)) - set(found)
    for age, entry in zip((40, 2, 1), found, strict=True):
        then = time.time() - age * 24 * 3600
        os.utime(entry, (then, then))
    load(text)
    assert found[0] not in entries(text)
    assert {found[1], found[2]} < set(entries(text))
    unfinished = found[0].with_name("x.part")
    unfinished.touch()
    one = found[2].stat().st_size
    monkeypatch.setattr(text_cache, "MAX_BYTES", 2 * one + len(TEXT) + 100)
    load(text, lowercase=True)
    assert found[1] not in entries(text)
    assert unfinished in entries(text)


def test_two_processes_may_write_one_entry(text, reads, monkeypatch):
    real = text_cache.write_cached

    def slow(folder, cached):
        monkeypatch.setattr(text_cache, "write_cached", real)
        load(text)  # another process, which is quicker
        real(folder, cached)

    monkeypatch.setattr(text_cache, "write_cached", slow)
    assert load(text).text == load(text).text == TEXT
    assert len(reads) == 2
    assert len(entries(text)) == 1
