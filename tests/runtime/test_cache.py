"""Code is cached only where nobody else can write; no cache is in the current folder."""

from __future__ import annotations

import os
import pwd
import tempfile
import warnings
from pathlib import Path

import pytest

from charjax.errors import HostError
from charjax.runtime.cache import cache_folder, mended_compilation_cache, private_cache_folder

NOBODY = 65534


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home, and another folder for temporary files."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def no_home(home, monkeypatch) -> Path:
    """The private temporary folder where neither `$HOME` nor a list of users knows a home."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    return home.parent / "tmp" / f"charjax-{os.getuid()}"


def give_away(path: Path) -> None:
    """Gives a folder to another user."""
    if os.getuid():
        pytest.skip("only root can give a file away")
    os.chown(path, NOBODY, NOBODY)


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


def test_the_cache_of_the_user(home, monkeypatch, tmp_path):
    assert cache_folder("data") == home / ".cache" / "charjax" / "data"
    assert private_cache_folder("jax") == home / ".cache" / "charjax" / "jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("data") == tmp_path / "xdg" / "charjax" / "data"


@pytest.mark.parametrize("path", ["", ".", "cache", "./cache"])
def test_a_relative_cache_path_is_ignored(home, monkeypatch, path):
    monkeypatch.setenv("XDG_CACHE_HOME", path)
    assert cache_folder("data") == home / ".cache" / "charjax" / "data"
    assert private_cache_folder("jax") == home / ".cache" / "charjax" / "jax"


def test_without_a_home_the_cache_is_a_private_temporary_folder(no_home, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cache_folder("data") == no_home / "data"
    assert private_cache_folder("kernels") == no_home / "kernels"
    assert (mode(no_home), mode(no_home / "kernels")) == ("0o700", "0o700")
    assert sorted(os.listdir()) == ["tmp"]


def test_without_a_home_nor_a_private_temporary_folder_there_is_no_cache(no_home):
    no_home.mkdir()
    give_away(no_home)
    assert private_cache_folder("kernels") is None
    with pytest.raises(HostError, match="belongs to another user; set XDG_CACHE_HOME"):
        cache_folder("data")


@pytest.mark.parametrize("name", ["charjax", "charjax/jax"])
def test_a_folder_of_another_user_is_not_used_for_code(home, name):
    folder = home / ".cache" / name
    folder.mkdir(parents=True)
    give_away(folder)
    assert private_cache_folder("jax") == home.parent / "tmp" / f"charjax-{os.getuid()}" / "jax"


def test_a_link_of_another_user_is_not_used_for_code(home):
    (home / ".cache").mkdir(parents=True)
    (home / "mine").mkdir()
    link = home / ".cache" / "charjax"
    link.symlink_to(home / "mine")
    assert private_cache_folder("jax") == link / "jax"
    if not os.getuid():
        os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
        assert home not in private_cache_folder("jax").parents


def test_the_rights_of_others_to_write_are_taken_back(home):
    folder = home / ".cache" / "charjax"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert private_cache_folder("jax") == folder / "jax"
    assert (mode(folder), mode(folder / "jax")) == ("0o755", "0o700")


ENTRY = "Error {} persistent compilation cache entry for '{}': ZstdError: cut off"


@pytest.mark.parametrize("name", ["jit_step", "jit_step-0123"])
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_damaged_program_in_the_cache_is_deleted_and_told_of_once(
    name, is_ours, home, monkeypatch, caplog
):
    folder = private_cache_folder("jax") if is_ours else home.parent
    assert folder is not None
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
    entries = [folder / f"{entry}-cache" for entry in ("jit_step-0123", "jit_steps-4567")]
    for entry in entries:
        entry.touch()
    with mended_compilation_cache(), caplog.at_level("WARNING", "charjax"):
        for part in ("reading", "reading", "writing"):
            warnings.warn(ENTRY.format(part, name), stacklevel=1)
    assert [entry.exists() for entry in entries] == [not is_ours, True]
    read, written = caplog.messages
    assert read == f"{folder}: a damaged program is compiled again (ZstdError: cut off)"
    assert written.startswith(f"{folder}: compiled programs are not cached; ")
    with mended_compilation_cache(), pytest.raises(UserWarning, match="another"):
        warnings.warn("another", stacklevel=1)
