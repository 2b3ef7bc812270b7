"""Sizes of functions, parameter lists and classes that a reader can hold in mind."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_PACKAGE = Path(__file__).parents[1] / "charjax"
_MAX_LINES, _MAX_PARAMETERS, _MAX_ATTRIBUTES = 40, 7, 8
_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
# Kernels take their operands one by one.
_KERNELS = ("model/recurrence/pallas_hopper/", "model/recurrence/c/")
# The config's fields are what a user can set; templates are programs that run elsewhere.
_NOT_LIMITED = ("config.py", "export/templates/")


def _parameters(function: _FUNCTIONS) -> int:
    a = function.args
    names = [one.arg for one in [*a.posonlyargs, *a.args, *a.kwonlyargs]]
    return len([name for name in names if name not in ("self", "cls")])


def _attributes(one: ast.ClassDef) -> set[str]:
    """Annotated fields of a class, and what its methods assign to `self`."""
    fields = {
        node.target.id
        for node in one.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return fields | {
        node.attr
        for node in ast.walk(one)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def _body_lines(function: _FUNCTIONS) -> int:
    """Lines of a function without its signature and docstring."""
    documented = ast.get_docstring(function) is not None and len(function.body) > 1
    first = function.body[1] if documented else function.body[0]
    return (function.end_lineno or 0) - first.lineno + 1


def too_large(source: str, name: str) -> Iterator[str]:
    """What of a module is larger than the limits."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _FUNCTIONS):
            if _body_lines(node) > _MAX_LINES:
                yield f"{node.name}: {_body_lines(node)} lines"
            if _parameters(node) > _MAX_PARAMETERS and not name.startswith(_KERNELS):
                yield f"{node.name}: {_parameters(node)} parameters"
        if isinstance(node, ast.ClassDef) and len(_attributes(node)) > _MAX_ATTRIBUTES:
            yield f"{node.name}: {len(_attributes(node))} attributes"


def test_no_function_and_no_class_is_too_large():
    modules = {path.relative_to(_PACKAGE).as_posix(): path for path in _PACKAGE.rglob("*.py")}
    found = {
        name: large
        for name, path in modules.items()
        if not name.startswith(_NOT_LIMITED) and (large := [*too_large(path.read_text(), name)])
    }
    assert not found, "divide it where the reader would: it does more than one thing"


@pytest.mark.parametrize(
    ("source", "large"),
    [
        ("def f():\n" + "    x = 1\n" * 41, ["f: 41 lines"]),
        ("def f(a, b, c, d, /, e, f, *, g, h): ...", ["f: 8 parameters"]),
        ("class A:\n" + "".join(f"    a{i}: int\n" for i in range(9)), ["A: 9 attributes"]),
        ("class A:\n  def f(self):\n    self.a = self.b = 1", []),
    ],
)
def test_what_is_too_large_is_named(source, large):
    assert [*too_large(source, "train/loop.py")] == large
