"""The arguments of a command: its flags, what they say in `--help`, and what is wrong with them."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from charjax.cli.config_flags import split_config_flags
from charjax.errors import InputError

if TYPE_CHECKING:
    from charjax.runtime.distributed import Place

WEIGHTS = ("float32", "bfloat16", "int8")  # the precisions of sample and score


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags as attributes, with the command's name in `command`.

    The config flags lie unread in `config_flags`; see `charjax.cli.config_flags.load_config`.

    Raises:
      InputError: there is no such command or flag, or a value does not fit.
    """
    _check_characters(arguments)
    config_flags, rest = split_config_flags(arguments)
    args: argparse.Namespace = _parser().parse_args(rest)
    if config_flags and not hasattr(args, "config"):
        raise InputError(f"{config_flags[0]}: only train and info take a config")
    if getattr(args, "workdir", None) == "":
        raise InputError("--workdir=: names no folder")
    args.config_flags = config_flags
    return args


def place_of(args: argparse.Namespace) -> Place | None:
    """This process's place among several; None where JAX is to find it."""
    from charjax.runtime.distributed import Place

    coordinator, process_id, num_processes = args.coordinator, args.process_id, args.num_processes
    if (coordinator, process_id, num_processes) == (None, None, None):
        return None
    if num_processes == 1 and process_id in (None, 0):
        return Place("", 0, 1)
    if None in (coordinator, process_id, num_processes):
        raise InputError("give --coordinator, --process_id and --num_processes together, or none")
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise InputError(f"--coordinator={coordinator}: must be HOST:PORT, such as node1:12345")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id}: must be from 0 to {num_processes - 1}, one below "
            f"--num_processes={num_processes}"
        )
    return Place(coordinator, process_id, num_processes)


def _check_characters(arguments: Sequence[str]) -> None:
    """Raises InputError for an argument that was not UTF-8, whose bytes became surrogates."""
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            shown = argument.encode("utf-8", "backslashreplace").decode()
            raise InputError(f"{shown}: not valid UTF-8; write the argument in UTF-8") from None


class _Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line, with the nearest name where a flag is misspelt."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see: {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            known = [*getattr(parsed, "flags", ()), "--config", "--help"]
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"see: {self.prog} --help"
            raise InputError(f"{unknown[0]}: no such flag; {hint}")
        return parsed


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="charjax", description="Character-level recurrent language models.", allow_abbrev=False
    )
    commands = parser.add_subparsers(
        required=True, dest="command", metavar="COMMAND", parser_class=_Parser
    )

    train = _command(commands, "train", "train or resume a run")
    _add_config(train, required=True)
    train.add_argument("--workdir", help="the run's folder; default runs/<name of the config>")
    train.add_argument(
        "--allow",
        default="",
        metavar="NAME[,NAME]",
        help="what may have changed since the run was saved: corpus, vocabulary, or fields or "
        "sections such as config.optim.learning_rate",
    )
    _add_place(train)

    sample = _command(commands, "sample", "write text with a trained model")
    _add_trained(sample)
    sample.add_argument("--prompt", default="", help="the text to continue")
    sample.add_argument("--num_chars", type=int, default=500, help="characters to write")
    sample.add_argument("--temperature", type=float, default=0.8, help="0: likeliest, always")
    sample.add_argument("--top_k", type=int, default=0, help="choose among the k likeliest; 0: all")
    sample.add_argument("--top_p", type=float, default=1.0, help="nucleus sampling; 1: all")
    sample.add_argument("--num_samples", type=int, default=1, help="how many texts")
    sample.add_argument("--separator", default="\n=====\n", help="between two texts")
    sample.add_argument("--seed", type=int, default=0)
    _add_weights(sample)
    _add_unknown(sample)

    score = _command(commands, "score", "measure how well a model predicts a text")
    _add_trained(score)
    score.add_argument("--file", required=True, help="a text file, or - for standard input")
    _add_weights(score)
    _add_unknown(score)

    export = _command(commands, "export", "write a model as a program without charjax")
    _add_trained(export)
    export.add_argument("--out", required=True, help="the folder to write")

    info = _command(commands, "info", "describe a config or a trained model as JSON")
    _add_config(info, required=False)
    info.add_argument("--workdir", help="the folder of a run")

    verify = _command(commands, "verify", "check every checkpoint of a run")
    verify.add_argument("--workdir", required=True, help="the folder of a run")

    for command in commands.choices.values():
        flags = [f for action in command._actions for f in action.option_strings]
        command.set_defaults(flags=flags)
    return parser


def _command(commands: Any, name: str, about: str) -> Any:
    return commands.add_parser(name, help=about, description=about, allow_abbrev=False)


def _add_config(command: Any, *, required: bool) -> None:
    # Taken out of the arguments before argparse sees them; here for --help only.
    command.add_argument(
        "--config",
        metavar="FILE[:ARGUMENT]",
        help="a config file, executed as Python; override fields with --config.model.hidden=512"
        + ("" if required else "; or give --workdir"),
    )


def _add_place(command: Any) -> None:
    """Only needed where JAX does not find the processes: it knows SLURM, Open MPI and others."""
    command.add_argument("--coordinator", help="HOST:PORT of process 0, the same on all processes")
    command.add_argument("--process_id", type=int, help="which process this is, from 0")
    command.add_argument("--num_processes", type=int, help="how many processes train together")


def _add_trained(command: Any) -> None:
    command.add_argument("--workdir", required=True, help="the folder of a run")
    command.add_argument(
        "--checkpoint", default="best", type=_which, help="best, newest or a step; default best"
    )


def _add_weights(command: Any) -> None:
    command.add_argument(
        "--weights",
        choices=WEIGHTS,
        help="multiply in this precision, int8: as whole numbers; default: as it was trained. "
        "score says what it costs",
    )


def _add_unknown(command: Any) -> None:
    command.add_argument(
        "--unknown",
        default="error",
        choices=("error", "unk"),
        help="characters that the model does not know: refuse, or read as [UNK]",
    )


def _which(value: str) -> str | int:
    if value in ("best", "newest"):
        return value
    if value.isdecimal():
        return int(value)
    raise argparse.ArgumentTypeError(f"{value!r} must be best, newest or the number of a step")
