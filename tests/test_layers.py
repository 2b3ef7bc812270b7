"""The house: who may import whom, what each package is allowed for, and that configs load."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from charjax.config import from_config_dict

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("**/*.py"))

# From the bottom up. A name ending in a dot is a room: all modules in it.
ROWS = (
    ("charjax.config", "charjax.schema", "charjax.errors", "charjax.types"),
    ("charjax.runtime.",),
    ("charjax.data.",),
    ("charjax.model.",),
    ("charjax.workdir", "charjax.checkpoint."),
    ("charjax.inference.",),
    ("charjax.export.",),
    ("charjax.train.",),
    ("charjax.cli.", "charjax.__main__", "launch"),
)
PUBLIC_FACE = "charjax"  # re-exports from every row; nothing inside imports it

# Where the name to import differs from the name to install.
DISTRIBUTIONS = {"absl": "absl-py", "orbax": "orbax-checkpoint"}
# Named in pyproject.toml without an import: jax.export serialises with it.
INDIRECT = {"flatbuffers"}
RUNTIME_EXTRAS = ("export", "tensorboard")


class Import(NamedTuple):
    """One imported name; `lazy` where importing the module does not run it."""

    name: str
    lazy: bool


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _statements(nodes: list[ast.stmt], lazy: bool) -> Iterator[tuple[ast.stmt, bool]]:
    for node in nodes:
        yield node, lazy
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        guarded = isinstance(node, ast.If) and _is_type_checking(node.test)
        for part, content in ast.iter_fields(node):
            inner = (
                [n for n in content if isinstance(n, ast.stmt | ast.ExceptHandler)]
                if (isinstance(content, list))
                else []
            )
            yield from _statements(inner, lazy or is_function or (guarded and part == "body"))


def imports(source: str, package: str) -> set[Import]:
    """Every name that a module imports; `package` is what its relative imports start from."""
    found = set()
    for node, lazy in _statements(ast.parse(source).body, lazy=False):
        if isinstance(node, ast.Import):
            found |= {Import(alias.name, lazy) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            found |= {Import(f"{base}.{alias.name}", lazy) for alias in node.names}
    return found


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _package(path: Path) -> str:
    name = _module_name(path)
    return name if path.stem == "__init__" else name.rpartition(".")[0]


PATHS = [*sorted((ROOT / "charjax").glob("**/*.py")), *ROOT.glob("launch.py")]
IMPORTS = {_module_name(p): imports(p.read_text("utf-8"), _package(p)) for p in PATHS}
ROOMS = sorted(IMPORTS.keys() - {PUBLIC_FACE})


def row_of(module: str) -> int:
    """The row of a module; charjax itself stands above them all."""
    if module == PUBLIC_FACE:
        return len(ROWS)
    for row, names in enumerate(ROWS):
        if any(f"{module}.".startswith(n) if n[-1] == "." else module == n for n in names):
            return row
    raise LookupError(
        f"{module} has no place in the house: give it one in ROWS and CONTRIBUTING.md"
    )


def inner(module: str, *, lazy: bool) -> set[str]:
    """The modules of charjax that a module imports, lazily or not, or only at once."""
    names = {i.name for i in IMPORTS[module] if lazy or not i.lazy}
    # `from charjax.data import vocab` names a module, `from charjax.runtime.keys import Stream`
    # does not.
    modules = {n if n in IMPORTS else n.rpartition(".")[0] for n in names}
    return (modules & IMPORTS.keys()) - {module}


def outer(module: str, *, lazy: bool) -> set[str]:
    """The third-party packages that a module imports, lazily or not, or only at once."""
    names = {i.name.partition(".")[0] for i in IMPORTS[module] if lazy or not i.lazy}
    return names - sys.stdlib_module_names - {"charjax"}


def importers(package: str, *, lazy: bool) -> set[str]:
    return {module for module in IMPORTS if package in outer(module, lazy=lazy)}


def test_the_reader_of_imports_sees_every_form():
    source = """
import numpy as np
from charjax.runtime import keys
from . import vocab
from ..errors import InputError
if TYPE_CHECKING:
    import flax
else:
    import rich
try:
    import jax.numpy
except ImportError:
    import absl
class A:
    import optax
    def f(self):
        with open("x"):
            from orbax import checkpoint
"""
    at_once = {i.name for i in imports(source, "charjax.data") if not i.lazy}
    lazily = {i.name for i in imports(source, "charjax.data") if i.lazy}
    assert at_once == {
        "numpy",
        "charjax.runtime.keys",
        "charjax.data.vocab",
        "charjax.errors.InputError",
        "rich",
        "jax.numpy",
        "absl",
        "optax",
    }
    assert lazily == {"flax", "orbax.checkpoint"}


def test_the_house_is_not_empty():
    assert {"charjax.config", "charjax.data", "charjax.model", "charjax.train"} <= set(ROOMS)
    assert inner("charjax.runtime.keys", lazy=True) == {"charjax.types"}


@pytest.mark.parametrize("module", ROOMS)
def test_imports_point_upwards_in_the_table(module):
    below = {m for m in inner(module, lazy=True) if row_of(m) > row_of(module)}
    assert not below, f"{module} (row {row_of(module) + 1}) imports {sorted(below)} from later rows"


def test_no_cycles():
    graph = {module: inner(module, lazy=True) for module in ROOMS}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, naming the cycle


def test_one_module_alone_knows_orbax():
    assert importers("orbax", lazy=True) <= {"charjax.checkpoint.store"}


@pytest.mark.parametrize("package", ["absl", "ml_collections"])
def test_flags_stay_at_the_command_line(package):
    assert not importers(package, lazy=False)
    assert importers(package, lazy=True) <= {"charjax.cli.config_flags", "charjax.config"}


def test_data_reaches_no_jax():
    reached, ahead = set(), {m for m in ROOMS if f"{m}.".startswith("charjax.data.")}
    while ahead:
        reached |= ahead
        ahead = set().union(*(inner(m, lazy=False) for m in ahead)) - reached
    packages = {m: outer(m, lazy=False) & {"jax", "jaxlib", "flax", "optax"} for m in reached}
    assert not {m: found for m, found in packages.items() if found}


def _distributions(requirements: list[str]) -> set[str]:
    names = (re.match(r"[\w.-]+", r).group() for r in requirements)
    return {name.lower().replace("_", "-") for name in names}


def _imported_distributions(*, lazy: bool) -> set[str]:
    names = set().union(*(outer(module, lazy=lazy) for module in IMPORTS))
    return {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in names}


def test_what_is_imported_is_what_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    always = _distributions(project["dependencies"])
    extras = set().union(
        *(_distributions(project["optional-dependencies"][name]) for name in RUNTIME_EXTRAS)
    )
    used = _imported_distributions(lazy=True)
    assert used <= always | extras, "imported, but not named in pyproject.toml"
    assert always | extras <= used | INDIRECT, "named in pyproject.toml, but never imported"
    assert _imported_distributions(lazy=False) <= always, "an extra must be imported lazily"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(ROOT / "configs").as_posix())
def test_every_config_loads_and_names_its_command(path):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from_config_dict(module.get_config())
    assert f"--config={path.relative_to(ROOT).as_posix()}" in module.__doc__


def test_pallas_waits_until_the_persistent_recurrence_is_asked_for():
    pallas = "charjax.model.recurrence.pallas_hopper"
    at_once = {m for m in ROOMS if any(name.startswith(pallas) for name in inner(m, lazy=False))}
    assert at_once
    assert all(module.startswith(pallas) for module in at_once)
