"""The subcommands, one module each: `charjax NAME` is `commands/NAME.py`.

A module has a docstring (its line in `--help`), `add_arguments(parser)` and `run(args)`. Imports
that import JAX are inside `run`, so that `charjax --help` does not wait for them.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def load_commands() -> dict[str, ModuleType]:
    """The module of every subcommand, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}
