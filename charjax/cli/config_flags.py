"""Parses config flags, `--config=FILE` and `--config.FIELD=VALUE`, into a config."""

from __future__ import annotations

import difflib
import importlib.machinery
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
    from ml_collections import ConfigDict

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
    _check_path_not_empty(config_flags)
    arguments = [] if argument is None else [argument]
    overrides = [flag for flag in config_flags if flag != files[0]]
    values = _overridden(_from_file(file, arguments), overrides)
    from charjax.config import from_config_dict

    return "-".join(filter(None, (file.stem, argument))), from_config_dict(values)


def override(config: Config, config_flags: Sequence[str]) -> Config:
    """Applies overrides to a config.

    Raises:
      InputError: an override is not valid.
    """
    from charjax.config import from_config_dict, to_config_dict

    _check_path_not_empty(config_flags)
    return from_config_dict(_overridden(to_config_dict(config), config_flags))


def _split_argument(given: str) -> tuple[str, str | None]:
    """Splits FILE:ARGUMENT; the argument is None if there is no colon."""
    drive, path = os.path.splitdrive(given)
    path, colon, argument = path.partition(":")
    return drive + path, argument if colon else None


def _check_path_not_empty(config_flags: Sequence[str]) -> None:
    """Refuses an empty `data.path`, as from an unset shell variable, unless a corpus is named."""
    given = dict(flag.partition("=")[::2] for flag in config_flags)
    if given.get("--config.data.path") == "" and not given.get("--config.data.corpus"):
        raise InputError(
            "--config.data.path=: is empty; name a file or a folder, or give --config.data.corpus "
            "to train on a named corpus"
        )


def _from_file(file: Path, arguments: Sequence[str]) -> ConfigDict:
    """The config that a file returns; fields that it leaves out have their defaults.

    Raises:
      InputError: the file fails, or returns no `ConfigDict`.
    """
    from ml_collections import ConfigDict

    from charjax.config import Config, to_dict

    try:
        config = _execute(file).get_config(*arguments)
    except CharjaxError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"--config={file}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"--config={file}: get_config() returns {type(config).__name__}, no ConfigDict; have "
            "it return to_config_dict(Config(...)) of charjax.config"
        )
    values = config.to_dict(preserve_field_references=True)
    return ConfigDict(_filled_up(values, to_dict(Config())))


def _filled_up(values: Any, defaults: Any) -> Any:
    """The values, as the types of the defaults if they can be; missing ones are the defaults."""
    if isinstance(values, dict) and isinstance(defaults, dict):
        filled = {name: _filled_up(values.get(name, d), d) for name, d in defaults.items()}
        return {str(name): value for name, value in values.items()} | filled
    if isinstance(defaults, float) and type(values) is int:
        return float(values)
    return tuple(values) if isinstance(defaults, tuple) and isinstance(values, list) else values


def _overridden(config: ConfigDict, overrides: Sequence[str]) -> dict[str, Any]:
    """The values of a config with overrides applied, one after the other."""
    from absl import flags
    from ml_collections import config_flags as ml_flags

    for override in overrides:
        _check_field(config, override)
        # Not absl's global FLAGS. ml_collections reads the override from sys_argv when the flag is
        # defined, before absl parses it.
        flag_values, argv = flags.FlagValues(), ["charjax", override]
        try:
            ml_flags.DEFINE_config_dict("config", config, flag_values=flag_values, sys_argv=argv)
            flag_values(argv)
        except (flags.Error, LookupError, AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{override}: {_remedy(config, override, error)}") from error
    return _with_columns(config.to_dict(), overrides)


def _check_field(config: ConfigDict, override: str) -> None:
    """Raises InputError for an override of a field or section that the config does not have."""
    from charjax.schema import leaves

    name = _field_of(override)
    fields = [field for field, _ in leaves(config.to_dict())]
    if name not in fields and name not in config:
        nearest = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "charjax/config.py lists them"
        raise InputError(f"{override}: no such field; {hint}")


def _field_of(override: str) -> str:
    return override.partition("=")[0].removeprefix("--config.")


def _remedy(config: ConfigDict, override: str, error: Exception) -> str:
    """What the value of an override must be, by the type of its field."""
    before = operator.attrgetter(_field_of(override))(config)
    if isinstance(before, tuple):
        return f"must be values with commas between them, such as {before or (1, 2)}"
    kinds: dict[type, str] = {bool: "True or False", int: "an integer", float: "a number"}
    kind = kinds.get(type(before))
    return f"must be {kind}" if kind else " ".join(str(error).split())


def _with_columns(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The values with `data.columns=title,text` as this text, which `charjax.schema` splits.

    ml_collections takes it for one name.
    """
    for name, _, text in (override.partition("=") for override in overrides):
        if name == "--config.data.columns" and values["data"]["columns"] == (text,):
            values["data"]["columns"] = text
    return values


def _execute(file: Path) -> Any:
    """Executes a config file as a module.

    Not by ml_collections, which would split a Windows path at the colon of the drive.
    """
    loader = importlib.machinery.SourceFileLoader("charjax_config", str(file))
    module = sys.modules[loader.name] = types.ModuleType(loader.name)
    loader.exec_module(module)
    return module
