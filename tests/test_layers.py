"""Imports: the layers of CONTRIBUTING.md, the packages of pyproject.toml; and that configs load."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from charjax.conditions import from_config_dict

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("**/*.py"))

PUBLIC_API = "charjax"  # re-exports from every layer; nothing inside imports it


def _module_pattern(path: str) -> str:
    """The module of a file, or the prefix of the modules in a folder: `charjax.data.`."""
    return path.removesuffix(".py").replace("/", ".")


def read_layers() -> tuple[tuple[str, ...], ...]:
    """The modules of each layer in CONTRIBUTING.md's map; folders as prefixes with a dot."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (table,) = re.findall(r"^\| layer \| modules \|.*\n\|[-|]*\n((?:\|.*\n)+)", text, re.MULTILINE)
    cells = [row.split("|")[2] for row in table.splitlines()]
    return tuple(tuple(map(_module_pattern, re.findall("`([^`]+)`", cell))) for cell in cells)


LAYERS = read_layers()

# Where the name to import differs from the name to install.
DISTRIBUTIONS = {"absl": "absl-py", "IPython": "ipython", "orbax": "orbax-checkpoint"}
# Named in pyproject.toml without an import: jax.export serialises with flatbuffers; exports import
# the packages of their extra by name; files.py imports zstd by the name that it has in this version
# of Python; ipykernel is what runs the code of a notebook.
INDIRECT = {"backports.zstd", "flatbuffers", "h5py", "ipykernel", "onnx"}
RUNTIME_EXTRAS = ("data", "export", "notebook", "serve", "tensorboard")


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
MODULES = sorted(IMPORTS.keys() - {PUBLIC_API})


def layer_of(module: str) -> int:
    """The layer of a module, from 0, by its most specific entry; the public API is above all."""
    if module == PUBLIC_API:
        return len(LAYERS)
    entries = [
        (len(name), layer)
        for layer, names in enumerate(LAYERS)
        for name in names
        if (f"{module}.".startswith(name) if name[-1] == "." else module == name)
    ]
    if not entries:
        raise LookupError(f"{module} is in no layer: add it to the map in CONTRIBUTING.md")
    return max(entries)[1]


def internal_imports(module: str, *, lazy: bool) -> set[str]:
    """The modules of charjax that a module imports; without `lazy`, only when it is imported."""
    names = {i.name for i in IMPORTS[module] if lazy or not i.lazy}
    # `from charjax.data import vocab` names a module, `from charjax.runtime.keys import Stream`
    # does not.
    modules = {n if n in IMPORTS else n.rpartition(".")[0] for n in names}
    return (modules & IMPORTS.keys()) - {module}


def third_party_imports(module: str, *, lazy: bool) -> set[str]:
    """The third-party packages that a module imports; without `lazy`, only when it is imported."""
    names = {i.name.partition(".")[0] for i in IMPORTS[module] if lazy or not i.lazy}
    return names - sys.stdlib_module_names - {"charjax"}


def importers(package: str, *, lazy: bool) -> set[str]:
    return {module for module in IMPORTS if package in third_party_imports(module, lazy=lazy)}


def test_imports_finds_every_form():
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
    eager = {i.name for i in imports(source, "charjax.data") if not i.lazy}
    lazy = {i.name for i in imports(source, "charjax.data") if i.lazy}
    assert eager == {
        "numpy",
        "charjax.runtime.keys",
        "charjax.data.vocab",
        "charjax.errors.InputError",
        "rich",
        "jax.numpy",
        "absl",
        "optax",
    }
    assert lazy == {"flax", "orbax.checkpoint"}


def test_the_map_and_the_modules_are_not_empty():
    assert {"charjax.config", "charjax.data", "charjax.model", "charjax.train"} <= set(MODULES)
    imported = {"charjax.errors", "charjax.types"}
    assert internal_imports("charjax.runtime.keys", lazy=True) == imported
    assert layer_of("charjax.config") == 0 < layer_of("charjax.data") < layer_of("charjax.train")


@pytest.mark.parametrize("name", [name for names in LAYERS for name in names])
def test_every_entry_of_the_map_exists(name):
    assert any(f"{module}.".startswith(f"{name.removesuffix('.')}.") for module in MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_to_the_same_or_an_earlier_layer(module):
    later = {m for m in internal_imports(module, lazy=True) if layer_of(m) > layer_of(module)}
    assert not later, f"{module} (layer {layer_of(module) + 1}) imports {sorted(later)}"


def test_no_cycles():
    graph = {module: internal_imports(module, lazy=True) for module in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, naming the cycle


def test_only_the_checkpoint_store_imports_orbax():
    assert importers("orbax", lazy=True) <= {"charjax.checkpoint.store"}


@pytest.mark.parametrize("package", ["absl", "ml_collections"])
def test_only_the_command_line_and_the_config_import_flags(package):
    assert not importers(package, lazy=False)
    assert importers(package, lazy=True) <= {"charjax.cli.config_flags", "charjax.config"}


def test_data_reaches_no_jax():
    reached, ahead = set(), {m for m in MODULES if f"{m}.".startswith("charjax.data.")}
    while ahead:
        reached |= ahead
        ahead = set().union(*(internal_imports(m, lazy=False) for m in ahead)) - reached
    packages = {
        m: third_party_imports(m, lazy=False) & {"jax", "jaxlib", "flax", "optax"} for m in reached
    }
    assert not {m: found for m, found in packages.items() if found}


def _distributions(requirements: list[str]) -> set[str]:
    names = (re.match(r"[\w.-]+", r).group() for r in requirements)
    return {name.lower().replace("_", "-") for name in names}


def _imported_distributions(*, lazy: bool, modules: Iterable[str] = IMPORTS) -> set[str]:
    names = set().union(*(third_party_imports(module, lazy=lazy) for module in modules))
    return {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in names}


def test_imported_packages_are_the_declared_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    always = _distributions(project["dependencies"])
    extras = set().union(
        *(_distributions(project["optional-dependencies"][name]) for name in RUNTIME_EXTRAS)
    )
    used = _imported_distributions(lazy=True)
    assert used <= always | extras, "imported, but not named in pyproject.toml"
    assert always | extras <= used | INDIRECT, "named in pyproject.toml, but never imported"
    others = {module for module in IMPORTS if not module.startswith("charjax.serve.")}
    assert _imported_distributions(lazy=False, modules=others) <= always, "import extras lazily"


def test_only_the_command_imports_the_server_and_lazily():
    at_once = {m for m in MODULES if "starlette" in third_party_imports(m, lazy=False)}
    while more := {m for m in MODULES if internal_imports(m, lazy=False) & at_once} - at_once:
        at_once |= more
    assert at_once
    assert all(module.startswith("charjax.serve.") for module in at_once)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(ROOT / "configs").as_posix())
def test_every_config_loads_and_names_its_command(path):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from_config_dict(module.get_config())
    assert f"--config={path.relative_to(ROOT).as_posix()}" in module.__doc__


def test_pallas_is_imported_lazily():
    pallas = "charjax.model.recurrence.pallas_hopper"
    at_once = {
        m
        for m in MODULES
        if any(name.startswith(pallas) for name in internal_imports(m, lazy=False))
    }
    assert at_once
    assert all(module.startswith(pallas) for module in at_once)
