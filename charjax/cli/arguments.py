"""The argument parser, and flags and helpers that several commands use."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from charjax.config import DataConfig
from charjax.errors import InputError
from charjax.runtime.paths import check_local, expand_path

if TYPE_CHECKING:
    from charjax.inference.load import TrainedModel

# Help of the flags that are fields of `DataConfig`, of commands that read other texts.
_READING = {
    "encoding": "such as latin-1; utf-8 also reads UTF-16 and UTF-32 with a byte order mark",
    "newlines": "unix: CR LF and CR become LF",
    "lowercase": "convert to lower case",
    "start": "keep the text from this marker on",
    "end": "keep the text up to this marker",
    "documents": "what a document is; rows: of CSV files",
    "delimiter": "with documents=delimiter: the text between two documents",
    "columns": "with documents=rows: the columns to read, by number or name, with commas between",
    "header": "with documents=rows: the first row has the names of the columns",
    "csv_delimiter": "with documents=rows: the character between columns",
}
_READING_OF_NEW = {  # a trained model determines these
    "unit": "what a token is",
    "boundary": "whether a token stands between documents",
}


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviated flags; its errors are InputErrors of one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises InputError instead of exiting."""
        raise InputError(f"{message}; see: {self.prog} --help")

    def print_help(self, file: Any = None) -> None:
        """As in argparse, which ignores that the help cannot be written."""
        (file or sys.stdout).write(self.format_help())

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, but an unknown flag is an InputError that suggests the nearest flag."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            flags = [*self._option_string_actions]
            nearest = [flag for flag in flags if flag.startswith(name) and name.strip("-")]
            nearest = nearest or difflib.get_close_matches(name, flags, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"see: {self.prog} --help"
            problem = "no such flag" if name.startswith("-") else "belongs to no flag"
            raise InputError(f"{unknown[0]}: {problem}; {hint}")
        return parsed, unknown


def add_config(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """`--config`. The flag and its overrides are in `args.config_flags`, unparsed."""
    # Added for --help only: `main.parse` removes config flags before argparse sees them.
    parser.add_argument(
        "--config",
        metavar="NAME[:ARGUMENT]",
        help="a name listed by `charjax configs`, or a file, which is executed as Python; override "
        "fields with flags such as --config.model.hidden=512"
        + ("" if required else "; or give --workdir"),
    )


def add_path(parser: Any, flag: str, about: str, *, is_local: bool = True, **options: Any) -> None:
    """A flag or argument whose value is a path, to a parser or a group, with options of argparse.

    Every path has this type, so that `~` and variables mean the same in all of them. One that
    `is_local` must be a path of this machine, and becomes a `Path`; another may be an address.
    """
    name = options.get("metavar", flag)

    def parse(value: str) -> Path | str:
        path = expand_path(value, name)
        if not is_local:
            return path
        check_local(Path(path), name)
        return Path(path)

    parser.add_argument(flag, type=parse, help=about, **options)


def add_model(parser: argparse.ArgumentParser, *, required: bool = True, **options: Any) -> None:
    """`--workdir`, with options of argparse, and `--checkpoint`, for `load_model`."""
    about = "a run's folder, or a folder from a model hub"
    if not required:
        about += "; default: the built-in model"
    add_path(parser, "--workdir", about, required=required, **options)
    parser.add_argument(
        "--checkpoint",
        default="best",
        type=_which,
        help="best (lowest validation loss), newest, or the number of a step; default: best",
    )


def add_inference(parser: argparse.ArgumentParser) -> None:
    """`--weights`, for `load_model`, and `--unknown`, for encoding the user's text."""
    add_weights(parser)
    parser.add_argument(
        "--unknown",
        default="error",
        choices=("error", "unk"),
        help="characters that are not in the vocabulary: refuse them, or read them as [UNK]",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """`--weights`, for `load_model`."""
    parser.add_argument(
        "--weights",
        choices=("float32", "bfloat16", "int8"),
        help="the precision of the weights; default: as trained; int8 is quantized, and "
        "`charjax score --weights=int8` measures the loss with it",
    )


def add_reading(parser: argparse.ArgumentParser, *, is_new: bool = False) -> None:
    """Flags for the fields of `DataConfig` that say how a text is read, for `reading_options`.

    Args:
      parser: the command's parser.
      is_new: whether no model was trained on the text yet, so that `unit` and `boundary` may be
        chosen; otherwise it is a `--file` for a trained model.
    """
    what = "the texts" if is_new else "a --file that differs from the run's text"
    group = parser.add_argument_group("reading", f"how to read {what}; values as in config.data")
    for field in dataclasses.fields(DataConfig):
        if field.name in _READING or (is_new and field.name in _READING_OF_NEW):
            is_bool = isinstance(field.default, bool)
            words: dict[str, Any] = {"nargs": "?", "const": True, "type": _bool} if is_bool else {}
            choices = field.metadata.get("choices")
            about = (_READING | _READING_OF_NEW)[field.name]
            group.add_argument(f"--{field.name}", choices=choices, help=about, **words)


def reading_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `DataConfig` that the flags of `add_reading` gave, and their values."""
    names = (*_READING, *_READING_OF_NEW)
    return {name: v for name in names if (v := getattr(args, name, None)) is not None}


def add_option(parser: Any, name: str, default: Any, about: str) -> None:
    """A flag with the type of its default; if that is False, the flag takes no value."""
    words = {"action": "store_true"} if default is False else {"type": type(default)}
    parser.add_argument(f"--{name}", default=default, help=about, **words)


def add_fields(parser: Any, schema: Any, about: Mapping[str, str]) -> None:
    """A flag for each of these fields of a dataclass, with its default, for `from_flags`."""
    for name, words in about.items():
        add_option(parser, name, getattr(schema, name), words)


def from_flags(schema: Any, args: argparse.Namespace) -> Any:
    """A dataclass from the flags of its fields' names; without a flag, a field has its default."""
    given = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(schema)}
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    return schema(**{name: value for name, value in given.items() if value is not None})


def load_model(args: argparse.Namespace, folder: Path | None) -> TrainedModel:
    """Loads the model of a folder, or the built-in one, as `--checkpoint` and `--weights` say.

    Raises:
      InputError: a checkpoint of the built-in model is chosen: it has only one.
    """
    if not folder and args.checkpoint != "best":
        raise InputError(f"--checkpoint={args.checkpoint}: needs --workdir, the folder of a run")
    from charjax.inference.load import load_builtin, load_trained, with_dtype
    from charjax.runtime.sharding import all_devices

    all_devices()  # so that a platform without a device is an error of one line
    trained = load_trained(folder, which=args.checkpoint) if folder else load_builtin()
    return with_dtype(trained, args.weights) if getattr(args, "weights", None) else trained


def print_json(values: Mapping[str, Any]) -> None:
    """Prints one JSON object to standard output."""
    print(json.dumps(values, allow_nan=False))  # noqa: T201


def check_process(process_id: int, num_processes: int) -> None:
    """Checks the number of this process among several.

    Raises:
      InputError: there can be no process of this number.
    """
    if num_processes < 1:
        raise InputError(f"--num_processes={num_processes}: must be 1 or more")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id}: must be from 0 to {num_processes - 1}, one below "
            f"--num_processes={num_processes}"
        )


def _which(value: str) -> str | int:
    if value in ("best", "newest"):
        return value
    if value.isdecimal():
        return int(value)
    raise argparse.ArgumentTypeError(f"{value!r} must be best, newest or the number of a step")


def _bool(value: str) -> bool:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise argparse.ArgumentTypeError(f"{value!r} must be true or false")
