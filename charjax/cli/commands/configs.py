"""List the configs that come with charjax, show one, or copy one to edit."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from charjax.errors import HostError, InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which config, and whether to copy it."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME", default="", help="a config; default: list all"
    )
    parser.add_argument(
        "--copy",
        action="store_true",
        help="write NAME.py into this folder, to edit; it never overwrites a file",
    )


def run(args: argparse.Namespace) -> None:
    """Prints all names with their first lines, or the docstring of one config; or copies one."""
    from charjax.cli.named_configs import describe, find_config, named_configs

    if args.name:
        file = find_config(args.name)
        text = describe(file)
        if args.copy:
            text = _copy(file)
    elif args.copy:
        raise InputError(
            "--copy: name the config to copy, as in charjax configs shakespeare --copy"
        )
    else:
        configs = named_configs()
        width = max(map(len, configs), default=0)
        lines = {name: describe(file).partition("\n")[0] for name, file in configs.items()}
        text = "\n".join(f"{name:{width}}  {line}" for name, line in lines.items())
    sys.stdout.write(f"{text}\n")


def _copy(file: Path) -> str:
    """Copies a config into the current folder; returns the message how to train with it."""
    copy, content = Path(file.name), file.read_bytes()
    try:
        with copy.open("xb") as new:
            new.write(content)
    except FileExistsError:
        raise InputError(f"{copy}: exists, and is not overwritten; rename it first") from None
    except OSError as error:
        raise HostError(f"{copy}: cannot be written: {error.strerror}") from None
    return f"{copy}: edit it, then run: charjax train --config={copy}"
