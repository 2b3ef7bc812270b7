"""Parses config flags, `--config=FILE` and `--config.FIELD=VALUE`, into a config."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.machinery
import inspect
import operator
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charjax.cli.named_configs import find_config
from charjax.errors import CharjaxError, InputError
from charjax.runtime.paths import expand_path

if TYPE_CHECKING:
    from charjax.config import Config


def split_config_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates config flags from all other arguments.

    `--config FILE` becomes `--config=FILE`; likewise for fields.

    Returns:
      The config flags, and the other arguments unchanged.

    Raises:
      InputError: the last flag has no value.
    """
    config_flags: list[str] = []
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, _ = word.partition("=")
        if name != "--config" and not name.startswith("--config."):
            others.append(word)
        elif equals:
            config_flags.append(word)
        else:
            value = next(words, None)
            if value is None:
                raise InputError(f"{word}: a value is missing; write {word}=VALUE")
            config_flags.append(f"{word}={value}")
    return config_flags, others


def load_config(config_flags: Sequence[str]) -> tuple[str, Config]:
    """Executes the config file and applies the overrides.

    Returns:
      The run's name ("shakespeare", or "shakespeare-ARGUMENT" if the file is given an argument) and
      the config.

    Raises:
      InputError: there is no such file, the file fails, or an override is not valid.
    """
    files = [flag for flag in config_flags if flag.startswith("--config=")]
    if len(files) != 1:
        raise InputError("--config: give one config, such as --config=shakespeare")
    given, argument = _split_argument(files[0].removeprefix("--config="))
    file = find_config(expand_path(given, "--config"), "--config=")
    config = _config_of(file, argument)
    name = "-".join(filter(None, (file.stem, argument)))
    return name, override(config, [flag for flag in config_flags if flag != files[0]])


def override(config: Config, config_flags: Sequence[str], *, drops_unused: bool = False) -> Config:
    """Applies overrides to a config.

    Args:
      config: the config.
      config_flags: the overrides.
      drops_unused: whether other fields, which they leave without an effect, get their defaults;
        else these are refused.

    Raises:
      InputError: an override is not valid.
    """
    from charjax.conditions import from_config_dict, without_unused
    from charjax.config import to_dict

    last = {flag.partition("=")[0]: flag for flag in config_flags}
    wanted = {flag: _type_of(flag) for flag in last.values()}
    corpus = last.get("--config.data.corpus", "").partition("=")[2]
    if "--config.data.path=" in wanted and not corpus:  # as from a variable that is not set
        raise InputError(
            "--config.data.path=: is empty; name a file or a folder, or give --config.data.corpus "
            "to train on a named corpus"
        )
    values = to_dict(config)
    for flag, field_type in wanted.items():
        name, _, text = flag.partition("=")
        *sections, field = name.split(".")[1:]
        functools.reduce(operator.getitem, sections, values)[field] = _value(flag, text, field_type)
    given = {name.removeprefix("--config.") for name in last}
    return from_config_dict(without_unused(values, given) if drops_unused else values)


def _value(flag: str, text: str, wanted: Any) -> Any:
    """The value that a flag gives; numbers and truth values are written as in flags of absl."""
    from absl import flags

    from charjax.schema import name_of_type

    parse_int, parse_bool = flags.IntegerParser().parse, flags.BooleanParser().parse
    parsers: dict[Any, Any] = {int: parse_int, bool: parse_bool, float: float, str: str}
    try:
        return parsers.get(wanted, _tuple)(text)
    except (ValueError, SyntaxError, TypeError):
        if wanted == tuple[int | str, ...]:
            return text  # names without quotes; `charjax.schema.parse` splits them
        raise InputError(f"{flag}: must be {name_of_type(wanted)}") from None


def _tuple(text: str) -> tuple[Any, ...]:
    """The values of a tuple, a list or a single value as Python writes it."""
    value = ast.literal_eval(text)
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _split_argument(given: str) -> tuple[str, str | None]:
    """Splits FILE:ARGUMENT; the argument is None if there is no colon."""
    drive, path = os.path.splitdrive(given)
    path, colon, argument = path.partition(":")
    return drive + path, argument if colon else None


def _type_of(flag: str) -> Any:
    """The type of the field that a flag overrides; InputError if there is none, or a section."""
    from charjax.config import Config
    from charjax.schema import field_type

    name = flag.partition("=")[0].removeprefix("--config.")
    try:
        wanted = field_type(Config, name)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from None
    if dataclasses.is_dataclass(wanted):
        first = dataclasses.fields(wanted)[0].name
        raise InputError(f"{flag}: is a section; set its fields, as --config.{name}.{first}")
    return wanted


def _config_of(file: Path, argument: str | None) -> Config:
    """The config that `get_config` of a file returns, for an argument or without one.

    ml_collections does not load the file: it would split a Windows path at the colon of the drive.

    Raises:
      InputError: the file fails, or what it returns is no config.
    """
    from charjax.config import Config
    from charjax.schema import parse

    where = f"--config={file}"
    loader = importlib.machinery.SourceFileLoader("charjax_config", str(file))
    module = sys.modules[loader.name] = types.ModuleType(loader.name)
    try:
        loader.exec_module(module)
        takes_argument = bool(inspect.signature(module.get_config).parameters)
        if argument is not None and not takes_argument:
            raise InputError(f"{where}:{argument}: takes no argument; leave it out")
        values = module.get_config(*([] if argument is None else [argument]))
    except CharjaxError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{where}: {type(error).__name__}: {error}") from error
    if not hasattr(values, "items"):
        raise InputError(
            f"{where}: get_config() must return a ConfigDict, as charjax.config.to_config_dict does"
        )
    return parse(Config, values, "config")
