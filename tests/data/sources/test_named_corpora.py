from __future__ import annotations

import hashlib
import io
import logging
import os
import zipfile
from pathlib import Path

import pytest

from charjax.data.sources import named_corpora
from charjax.data.sources.download import fetch
from charjax.data.sources.named_corpora import (
    BUILT_IN,
    NAMED,
    CorpusUnavailableError,
    is_downloaded,
    read_named,
)
from charjax.data.sources.raw_text import RawText
from charjax.errors import HostError

from ..shelf import Shelf


def content(text: RawText) -> bytes:
    return b"".join(text.blocks)


def zipped(text: bytes, *names: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name in names or ["story"]:
            opened.writestr(name, text)
    return archive.getvalue()


def test_look_up_goes_from_the_data_folder_to_the_cache_to_the_web(shelf, caplog):
    shelf.online = True
    places = [shelf.put("data"), shelf.put("cache")]
    for place in places:
        assert read_named("story").origin == place
        os.remove(place)
    assert shelf.fetched == []
    caplog.set_level(logging.INFO, logger="charjax")
    assert read_named("story") == (places[1], (Shelf.TEXT,), (), 0)
    assert caplog.messages == [f"downloading https://example.org/story to {places[1]}"]
    read_named("story")
    assert len(shelf.fetched) == 1


def test_the_cache_is_in_the_home_folder_unless_told_otherwise(shelf, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("CHARJAX_DATA_DIR")
    monkeypatch.setenv("HOME", str(shelf.data))
    path = shelf.put("data", name=".cache/charjax/data/story.txt")
    assert read_named("story").origin == path


def test_a_file_that_is_not_the_published_one_is_used_with_a_notice(shelf):
    shelf.put("data", b"another story")
    text = read_named("story")
    assert content(text) == b"another story"
    assert len(text.notices) == 1
    assert text.notices[0].startswith("story.txt is not the published file")


def test_without_a_published_digest_that_of_the_first_download_must_stay(shelf, caplog):
    shelf.online = True
    shelf.holds(shelf.source(sha256=""))
    caplog.set_level(logging.INFO, logger="charjax")
    path = Path(read_named("story").origin)
    digest = hashlib.sha256(Shelf.TEXT).hexdigest()
    assert caplog.messages[-1] == (
        f"story.txt has no published digest; recorded its SHA-256, {digest}"
    )
    assert read_named("story").notices == ()
    path.write_bytes(b"another story")
    (notice,) = read_named("story").notices
    assert notice.startswith("story.txt has changed since it was downloaded")
    path.unlink()
    read_named("story")
    assert [file.sha256 for file in shelf.asked] == ["", digest]


def test_another_file_than_that_of_the_first_download_is_refused(shelf, serve, monkeypatch):
    monkeypatch.setattr(named_corpora, "fetch", fetch)
    texts = iter([Shelf.TEXT, *[b"another story"] * 9])
    server = serve(lambda call: call.answer(next(texts)))
    shelf.holds(shelf.source(url=server.url, sha256=""))
    path = Path(read_named("story").origin)
    path.unlink()
    with pytest.raises(CorpusUnavailableError, match="sent a file of SHA-256") as caught:
        read_named("story")
    record = path.with_name("story.txt.sha256")
    assert f"if the publisher has changed the file, delete {record}" in str(caught.value)
    assert not path.exists()
    record.unlink()
    assert content(read_named("story")) == b"another story"


def test_a_second_file_serves_where_the_first_is_nowhere(shelf):
    second = shelf.source(file="test.csv", url="", notice="only the test part")
    shelf.holds(shelf.source(), second)
    shelf.put("data", name="test.csv")
    assert read_named("story").notices == ("only the test part",)
    assert shelf.fetched == ["https://example.org/story"]
    assert not is_downloaded("story")
    shelf.put("cache")
    assert read_named("story").notices == ()
    assert is_downloaded("story")
    assert not is_downloaded("of another version")


def test_an_archive_gives_its_one_text_and_writes_nothing(shelf):
    shelf.holds(shelf.source(file="story.zip", sha256=""))
    path = shelf.put("data", zipped(Shelf.TEXT), "story.zip")
    assert read_named("story") == (path, (Shelf.TEXT,), (), 0)
    assert os.listdir(shelf.data) == [os.path.basename(path)]


FLIPPED = bytearray(zipped(bytes(range(200)) * 5))
FLIPPED[60] ^= 1


@pytest.mark.parametrize(
    "archive",
    [b"", b"PK nonsense", zipped(Shelf.TEXT)[:-30], zipped(Shelf.TEXT, "a", "b"), bytes(FLIPPED)],
    ids=["empty", "nonsense", "truncated", "without a text", "flipped bit"],
)
def test_a_bad_archive_is_named_with_its_remedy(shelf, archive):
    shelf.holds(shelf.source(file="story.zip", sha256=""))
    path = shelf.put("data", archive, "story.zip")
    with pytest.raises(HostError, match="delete") as caught:
        read_named("story")
    assert str(caught.value).startswith(f"{path}: ")


def test_the_built_in_corpus_is_real_text_on_every_machine():
    text = read_named(BUILT_IN)
    assert len(content(text).decode("utf-8")) > 300_000
    assert text.notices == ()


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_named_corpus_can_be_downloaded_and_is_bounded(name):
    assert any(source.url for source in NAMED[name])
    for source in NAMED[name]:
        assert source.url.startswith("https://") or not source.url or source.sha256
        assert len(source.sha256) in (0, 64)
        assert source.min_bytes <= source.max_bytes <= 100_000_000
