"""The site of the documentation: `python -m sphinx -W docs site`, with the extra `docs`.

Two pages are made when it is built: of the commands, from their parser, and of the public names,
from `charjax.__all__`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
from collections.abc import Iterator
from pathlib import Path

import charjax
from charjax.cli.main import make_parser

project, author = "charjax", "The charjax authors"
version = release = importlib.metadata.version("charjax")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme, html_title = "furo", f"charjax {version}"
exclude_patterns = ["img"]
myst_heading_anchors = 3
# Links to files of the repository, which the site does not have.
suppress_warnings = ["myst.xref_missing"]
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_use_ivar = True

_MADE = Path(__file__).parent / "made"


def _command_lines() -> Iterator[str]:
    """Every command and option, as Markdown."""
    parser = make_parser()
    (subparsers,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    yield f"# Commands\n\n{parser.description}\n"
    for name, command in subparsers.choices.items():
        yield f"## charjax {name}\n\n{command.description}\n\n| option | |\n|---|---|"
        for action in command._actions:
            names = ", ".join(action.option_strings) or action.dest.upper()
            about = (action.help or "") % {"default": action.default, "prog": command.prog}
            choices = f" ({', '.join(map(str, action.choices))})" if action.choices else ""
            cell = f"{about}{choices}".replace("|", "\\|").replace("<", "&lt;").replace("\n", "\\n")
            yield f"| `{names}` | {cell} |"
        yield ""


def _name_lines() -> Iterator[str]:
    """Every public name, as Markdown with Sphinx's directives."""
    yield "# The library\n\n`import charjax` has these names; each is imported when first used.\n"
    for name in sorted(charjax.__all__):
        value = getattr(charjax, name)
        kind = "autoclass" if inspect.isclass(value) else "autofunction"
        yield f"```{{eval-rst}}\n.. {kind}:: {value.__module__}.{name}\n```\n"


def _make_pages(app: object) -> None:
    _MADE.mkdir(exist_ok=True)
    for name, lines in {"commands": _command_lines(), "library": _name_lines()}.items():
        (_MADE / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def setup(app: object) -> None:
    """Has Sphinx make the pages before it reads any."""
    app.connect("builder-inited", _make_pages)  # type: ignore[attr-defined]
