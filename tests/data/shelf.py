"""A named corpus that can be in the data folder, in the cache, or on a fake web."""

from __future__ import annotations

import hashlib

from charjax.data.sources import named_corpora
from charjax.data.sources.named_corpora import Source


class Shelf:
    """A corpus named `story`, the two folders that may have it, and a fake web (`online`)."""

    TEXT = b"Once upon a time.\n"

    def __init__(self, tmp_path, monkeypatch) -> None:
        self.data, self.cache = tmp_path / "data", tmp_path / "cache"
        self.online = False
        self.fetched: list[str] = []
        self.asked: list[Source] = []
        monkeypatch.setenv("CHARJAX_DATA_DIR", str(self.data))
        monkeypatch.setenv("XDG_CACHE_HOME", str(self.cache))
        monkeypatch.setattr(named_corpora, "fetch", self._fetch)
        self._patch = monkeypatch
        self.holds(self.source())

    def holds(self, *sources: Source) -> None:
        """Sets the sources of the corpus, the preferred one first."""
        self._patch.setitem(named_corpora.NAMED, "story", sources)

    def source(self, **fields: str) -> Source:
        digest = hashlib.sha256(self.TEXT).hexdigest()
        given = {"file": "story.txt", "url": "https://example.org/story", "sha256": digest}
        return Source(min_bytes=1, max_bytes=100, **{**given, **fields})

    def put(self, folder: str, text: bytes = TEXT, name: str = "story.txt") -> str:
        """Puts a file into the `data` folder or the `cache`; its path."""
        path = self.data / name if folder == "data" else self.cache / "charjax" / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
        return str(path)

    def _fetch(self, source, target, **_) -> None:
        self.fetched.append(source.url)
        self.asked.append(source)
        if not self.online:
            raise named_corpora.HostError(
                f"{source.url}: cannot be reached; put the file at {target}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.TEXT)
