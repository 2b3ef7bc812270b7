from __future__ import annotations

from pathlib import Path

import pytest

from charjax.errors import InputError
from charjax.runtime.paths import check_local, expand_path, starting_folder


def test_home_and_variables_are_replaced_everywhere(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("NAME", "x y")
    assert expand_path("~/a", "--out") == "/home/me/a"
    assert expand_path("a/$NAME/${NAME}b", "--out") == "a/x y/x yb"
    assert expand_path("a~", "--out") == "a~"


def test_only_a_relative_path_starts_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path}" in starting_folder("a.txt")
    assert starting_folder(f"{tmp_path}/a.txt") == starting_folder("gs://bucket/a.txt") == ""


@pytest.mark.parametrize(
    "given", ["", "$UNSET", "a/${UNSET}/b", "$EMPTY", "~nobody-of-this-name/x"]
)
def test_an_empty_path_and_an_unset_variable_are_refused(monkeypatch, given):
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(InputError, match=r"^--out="):
        expand_path(given, "--out")


def test_an_existing_name_with_a_dollar_stays(tmp_path):
    (tmp_path / "a$b.txt").write_text("x")
    assert expand_path(str(tmp_path / "a$b.txt"), "--out") == str(tmp_path / "a$b.txt")


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3:/b", "hdfs://x", "file:///tmp/x"])
def test_an_address_is_no_local_path(path):
    with pytest.raises(InputError, match="an address, not a path of this machine"):
        check_local(Path(path), "--workdir")


@pytest.mark.parametrize("path", ["runs/x", "/a:/b", "a/b:/c", "C:x", ".", "~/x"])
def test_other_paths_are_local(path):
    check_local(Path(path), "--workdir")
