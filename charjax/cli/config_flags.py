"""Config flags, `--config=FILE` and `--config.FIELD=VALUE`, and the config that they describe."""

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
    """The config that the flags describe.

    Returns:
      The run's name ("shakespeare" or, with a file's argument, "shakespeare-ARGUMENT"), the config.

    Raises:
      InputError: there is no such file, it fails, or an override does not fit.
    """
    files = [flag for flag in config_flags if flag.startswith("--config=")]
    if len(files) != 1:
        raise InputError("--config: give one config, such as --config=shakespeare")
    given, argument = _split_argument(files[0].removeprefix("--config="))
    file = find_config(expand_path(given, "--config"), "--config=")
    _check_text_is_named(config_flags)
    overrides = [flag for flag in config_flags if flag != files[0]]
    arguments = [] if argument is None else [argument]
    where = f"--config={file}"
    values = _overridden(lambda: _execute(file).get_config(*arguments), where, overrides)
    from charjax.config import from_config_dict

    return "-".join(filter(None, (file.stem, argument))), from_config_dict(values)


def override(config: Config, config_flags: Sequence[str]) -> Config:
    """A config with the overrides of the flags.

    Raises:
      InputError: an override does not fit.
    """
    from charjax.config import from_config_dict, to_config_dict

    _check_text_is_named(config_flags)
    return from_config_dict(_overridden(lambda: to_config_dict(config), "--config", config_flags))


def _split_argument(given: str) -> tuple[str, str | None]:
    """The file, and the argument after a colon; None: there is no colon."""
    drive, path = os.path.splitdrive(given)
    path, colon, argument = path.partition(":")
    return drive + path, argument if colon else None


def _check_text_is_named(config_flags: Sequence[str]) -> None:
    """Refuses an empty `data.path`, as of an unset variable, without a corpus in its place."""
    given = dict(flag.partition("=")[::2] for flag in config_flags)
    if given.get("--config.data.path") == "" and not given.get("--config.data.corpus"):
        raise InputError(
            "--config.data.path=: is empty; name a file or a folder, or give --config.data.corpus "
            "to train on a named corpus"
        )


def _overridden(get_config: Callable[[], Any], where: str, overrides: Sequence[str]) -> Any:
    """What `get_config` returns, with the overrides; `where` is it from, for messages."""
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
        return flag_values.config.to_dict()
    except CharjaxError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(_config_message(error, where, overrides)) from error
    except Exception as error:
        raise InputError(f"{where}: {type(error).__name__}: {error}") from error


def _execute(file: Path) -> Any:
    """The module of a config file. ml_collections would split its path at the colon of a drive."""
    loader = importlib.machinery.SourceFileLoader("charjax_config", str(file))
    module = sys.modules[loader.name] = types.ModuleType(loader.name)
    loader.exec_module(module)
    return module


def _config_message(error: Exception, source: str, overrides: Sequence[str]) -> str:
    """One line that names the override or the file that caused the error."""
    text = " ".join(str(error).split())
    names = [(o, o.partition("=")[0].removeprefix("--config.")) for o in overrides]
    suspects = [o for o, name in names if name in text]
    suspects += [o for o, name in names if any(part in text for part in name.split("."))]
    where = suspects[0] if suspects else source
    if isinstance(error, KeyError | AttributeError) and suspects:
        nearest = re.search(r'Did you mean "(\w+)"', text)
        return f"{where}: no such field; " + (
            f"did you mean {nearest[1]}?" if nearest else "charjax/config.py lists them"
        )
    return f"{where}: {text}"
