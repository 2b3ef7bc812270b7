"""The C library is compiled once and cached; every fault of that has a reason or a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from charjax.model.recurrence.c import build

needs_c = pytest.mark.skipif(
    isinstance(build.load(), build.Unavailable), reason=f"no C library: {build.load()}"
)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of an empty cache, as `build` sees it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "charjax" / "kernels"


def opened() -> bool:
    return hasattr(build.open_library(), build.FORWARD)


@needs_c
def test_it_is_compiled_once(cache, monkeypatch):
    assert opened()
    (cached,) = cache.iterdir()  # and no partial file beside it
    monkeypatch.setenv("CC", "no-such-compiler")
    assert opened()
    assert list(cache.iterdir()) == [cached]


@needs_c
def test_a_damaged_file_is_compiled_again(cache):
    cache.mkdir(parents=True)
    damaged = cache / f"{build._cache_key()}.so"
    damaged.write_bytes(b"no library")
    assert opened()
    assert damaged.stat().st_size > 1000


@needs_c
def test_a_cache_that_cannot_be_written_is_not_needed(cache):
    cache.parent.write_text("a file where a folder should be")
    assert opened()


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_there_is_a_reason(cache, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    unavailable = build.open_library()
    assert isinstance(unavailable, build.Unavailable)
    assert "compiler" in unavailable.reason or compiler in unavailable.reason
    assert not cache.exists()
