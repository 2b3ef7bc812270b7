"""The C library is compiled once and cached; every fault of that has a reason or a remedy."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from charjax.model.recurrence.c import build
from charjax.model.recurrence.c.library import FORWARD, target
from tests.model.recurrence.c_library import needs_c


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A compiled library, for compilers that need not compile it again."""
    folder = tmp_path_factory.mktemp("library")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("CC", write_compiler(folder / "cc", 'exec cc "$@" -O0'))
        assert opened()
    return next((folder / "charjax" / "kernels").iterdir())


def write_compiler(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def cache(tmp_path, library, monkeypatch) -> Path:
    """The folder of an empty cache, as `build` sees it, and a compiler that takes no time."""
    copies = f'for output; do :; done; cp {library} "$output"'
    monkeypatch.setenv("CC", write_compiler(tmp_path / "cc", copies))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "charjax" / "kernels"


def opened() -> bool:
    return hasattr(build.open_library(), target(FORWARD, "float32"))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_compiler_that_is_found_compiles_it():
    """Else all tests of C would be skipped, as when a version of jaxlib renames what C reads."""
    assert "fails" not in getattr(build.load(), "reason", "")


@needs_c
def test_it_is_compiled_once(cache, monkeypatch):
    assert opened()
    (cached,) = cache.iterdir()  # and no partial file beside it
    monkeypatch.setenv("CC", "no-such-compiler")
    assert opened()
    assert list(cache.iterdir()) == [cached]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "without its last page": lambda content: content[:-4096],
    "with a bit flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
}


@needs_c
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_compiled_again(cache, damage):
    assert opened()
    (damaged,) = cache.iterdir()
    good = damaged.read_bytes()
    damaged.unlink()  # this process has loaded it
    damaged.write_bytes(DAMAGES[damage](good))
    damaged.chmod(0o600)
    assert opened()
    (again,) = cache.iterdir()
    assert again.read_bytes() == good


PLANTED = """
#include <stdio.h>
__attribute__((constructor)) static void run(void) { fclose(fopen("%s", "w")); }
"""


@pytest.fixture
def planted(cache, tmp_path) -> Iterator[Path]:
    """A library with a correct digest in the cache, which writes a file where it is loaded."""
    source, library = tmp_path / "planted.c", tmp_path / "planted.so"
    source.write_text(PLANTED % (tmp_path / "loaded"))
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    cache.mkdir(parents=True)
    library.chmod(0o600)
    yield library.rename(cache / build._name(build._cache_key(), library.read_bytes()))
    assert not (tmp_path / "loaded").exists()


@needs_c
@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_a_file_that_others_can_write_is_not_loaded(planted, mode):
    planted.chmod(mode)
    assert opened()
    assert not planted.exists()


@needs_c
def test_a_link_is_not_loaded(planted, tmp_path):
    planted.symlink_to(planted.rename(tmp_path / "elsewhere.so"))
    assert opened()


@needs_c
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", ["file", "folder"])
def test_what_another_user_owns_is_not_loaded(planted, tmp_path, monkeypatch, name):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    os.chown(planted if name == "file" else planted.parent, 65534, 65534)
    assert opened()
    assert planted.exists() == (name == "folder")


@needs_c
def test_a_cache_that_cannot_be_written_is_not_needed(cache, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    cache.parent.write_text("a file where a folder should be")
    assert opened()
    monkeypatch.setattr(build, "private_cache_folder", lambda name: None)
    assert opened()


def test_a_compiler_that_is_slow_once_leaves_no_slow_library(tmp_path, monkeypatch):
    """Other flags, which an old compiler needs, would compile narrower vectors into the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    waits = f'echo >>{tmp_path}/calls; case "$*" in *native*) sleep 60;; esac; exec cc "$@" -O0'
    monkeypatch.setenv("CC", write_compiler(tmp_path / "cc", waits))
    monkeypatch.setattr(build, "_TIMEOUT_S", 0.5)
    unavailable = build.open_library()
    assert isinstance(unavailable, build.Unavailable)
    assert "no result after" in unavailable.reason
    assert (tmp_path / "calls").read_text().count("\n") == 1
    assert not list(tmp_path.rglob("*.so"))


@needs_c
def test_a_compiler_may_have_a_wrapper_and_arguments(cache, library, tmp_path, monkeypatch):
    """CC is split into words as a shell does it."""
    script = f'test "$1" = "-DX=a b" && for output; do :; done && cp {library} "$output"'
    compiler = write_compiler(tmp_path / "another cc", script)
    monkeypatch.setenv("CC", f"env '{compiler}' '-DX=a b'")
    assert opened()


@pytest.mark.parametrize(
    "compiler",
    ["no-such-compiler", "no-such-wrapper cc", "false", "false -g", "true", "cc 'unclosed"],
)
def test_without_a_compiler_there_is_a_reason(tmp_path, monkeypatch, compiler):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    unavailable = build.open_library()
    assert isinstance(unavailable, build.Unavailable)
    assert compiler in unavailable.reason
    assert list((tmp_path / "charjax" / "kernels").iterdir()) == []


def test_without_a_folder_to_compile_in_there_is_a_reason(cache, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(tempfile, "mkdtemp", Mock(side_effect=full))
    unavailable = build.open_library()
    assert isinstance(unavailable, build.Unavailable)
    assert "No space left" in unavailable.reason


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["-march=native", "-march=x86-64-v3", "-march=x86-64"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_gcc_and_clang_compile_it_without_a_warning(compiler, processor, tmp_path):
    if shutil.which(compiler) is None or platform.machine() != "x86_64":
        pytest.skip(f"no {compiler} for x86-64")
    (command, *_) = build._commands([compiler], tmp_path / "library.so")
    strict = [processor if flag.startswith("-m") else flag for flag in command]
    flags = ["-Wall", "-Wextra", "-Werror"]
    ended = subprocess.run([*strict, *flags], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
