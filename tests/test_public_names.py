"""Every public name is the object of the module that `charjax/__init__.pyi` names."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import charjax

STUB = ast.parse(Path(charjax.__file__).with_suffix(".pyi").read_text("utf-8"))
NAMES = {
    alias.name: f"charjax.{node.module}"
    for node in STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


def test_all_lists_the_stub():
    assert sorted(charjax.__all__) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_stays_what_it_is_once_its_package_is_imported(name):
    """A name that is also a package's would become that package."""
    module = importlib.import_module(NAMES[name])
    for _ in range(2):
        assert getattr(charjax, name) is getattr(module, name)
