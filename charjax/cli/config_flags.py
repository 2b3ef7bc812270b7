"""Parses config flags, `--config=FILE` and `--config.FIELD=VALUE`, into a config."""

from __future__ import annotations

import importlib.machinery
import os
import re
import sys
import types
from collections.abc import Callable, Sequence
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
    _check_path_not_empty(config_flags)
    overrides = [flag for flag in config_flags if flag != files[0]]
    arguments = [] if argument is None else [argument]
    where = f"--config={file}"
    values = _overridden(lambda: _execute(file).get_config(*arguments), where, overrides)
    from charjax.config import from_config_dict

    return "-".join(filter(None, (file.stem, argument))), from_config_dict(values)


def override(config: Config, config_flags: Sequence[str]) -> Config:
    """Applies overrides to a config.

    Raises:
      InputError: an override is not valid.
    """
    from charjax.config import from_config_dict, to_config_dict

    _check_path_not_empty(config_flags)
    return from_config_dict(_overridden(lambda: to_config_dict(config), "--config", config_flags))


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


def _overridden(get_config: Callable[[], Any], where: str, overrides: Sequence[str]) -> Any:
    """The config of `get_config`, with overrides applied; `where` names its source in messages."""
    from absl import flags
    from ml_collections import config_flags as ml_flags

    # Not absl's global FLAGS. ml_collections reads the overrides from sys_argv when the flag is
    # defined, before absl parses it.
    flag_values = flags.FlagValues()
    argv = ["charjax", *overrides]
    try:
        config = get_config()
        ml_flags.DEFINE_config_dict("config", config, flag_values=flag_values, sys_argv=argv)
        flag_values(argv)
        return _with_columns(flag_values.config.to_dict(), overrides)
    except CharjaxError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(_config_message(error, where, overrides)) from error
    except Exception as error:
        raise InputError(f"{where}: {type(error).__name__}: {error}") from error


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


def _config_message(error: Exception, source: str, overrides: Sequence[str]) -> str:
    """The message of an error, which names the override or the file that caused it."""
    text = " ".join(str(error).split())
    names = [(o, o.partition("=")[0].removeprefix("--config.")) for o in overrides]
    suspects = [o for o in overrides if f"{o}:" in text]  # of a field given twice, the wrong one
    suspects += [o for o, name in names if name in text]
    suspects += [o for o, name in names if any(part in text for part in name.split("."))]
    where = suspects[0] if suspects else source
    if isinstance(error, KeyError | AttributeError) and suspects:
        nearest = re.search(r'Did you mean "(\w+)"', text)
        return f"{where}: no such field; " + (
            f"did you mean {nearest[1]}?" if nearest else "charjax/config.py lists them"
        )
    return f"{where}: {text.removeprefix(f'flag {where}: ')}"
