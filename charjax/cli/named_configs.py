"""The configs that come with charjax, by name: `shakespeare` is `configs/shakespeare.py`."""

from __future__ import annotations

import ast
import difflib
import os
from pathlib import Path

from charjax.errors import InputError

_PACKAGE = Path(__file__).parents[1]


def named_configs() -> dict[str, Path]:
    """The config files by name, from the installed package or from the checkout."""
    folders = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    folder = next(filter(Path.is_dir, folders), None)
    if folder is None:
        return {}
    files = {file.relative_to(folder).with_suffix(""): file for file in folder.rglob("*.py")}
    return {name.as_posix(): files[name] for name in sorted(files)}


def find_config(given: str, flag: str = "") -> Path:
    """Finds a config file by its path or its name; an existing path wins over a name.

    Args:
      given: the path or the name.
      flag: prefix of `given` in messages, such as "--config=".

    Raises:
      InputError: there is no such file and no such name.
    """
    if os.path.isfile(given):
        return Path(given)
    configs = named_configs()
    if given in configs:
        return configs[given]
    by_last_part = {known.rpartition("/")[2]: known for known in configs}
    nearest = difflib.get_close_matches(Path(given).stem, by_last_part, n=1)
    hint = f"did you mean {flag}{by_last_part[nearest[0]]}?" if nearest else "see: charjax configs"
    raise InputError(f"{flag}{given}: no such file, and no config of this name; {hint}")


def describe(file: Path) -> str:
    """The docstring of a config file.

    Raises:
      InputError: it is not a Python file.
    """
    try:
        return ast.get_docstring(ast.parse(file.read_bytes())) or ""
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{file}: is not a Python file ({error}); name a config file") from None
