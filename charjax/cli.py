"""Flags in, exit code out. What the commands do is done in the rooms above."""

from __future__ import annotations

import argparse
import difflib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from charjax.errors import CharjaxError, HostError, InputError
from charjax.train.signals import exit_on_signals

if TYPE_CHECKING:
    from charjax.config import Config
    from charjax.generate.trained import Trained
    from charjax.processes import Place


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; see `charjax --help`.

    Args:
      argv: the arguments after the program's name; None: those of this process.

    Returns:
      The exit code; every error that a user can cause is one line on stderr.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no message fails for want of a character
            stream.reconfigure(errors="backslashreplace")
    try:
        with exit_on_signals(_last_words):
            _run(arguments)
    except CharjaxError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if arguments[:1] != ["train"]:
            return 0  # the reader has seen enough
        return _fail(
            "standard output: its reader has gone; the same command goes on from there",
            HostError.exit_code,
        )
    except (MemoryError, OSError, RuntimeError) as error:
        known = _environment_error(error)
        if known is None:
            raise
        return _fail(known, HostError.exit_code)
    return 0


def _run(arguments: Sequence[str]) -> None:
    _check_characters(arguments)
    config_flags, rest = _split_config_flags(arguments)
    args = _parser().parse_args(rest)
    if config_flags and not hasattr(args, "config"):
        raise InputError(f"{config_flags[0]}: only train and info take a config")
    args.config_flags = config_flags
    _set_up_jax()
    args.run(args)
    sys.stdout.flush()


def _fail(message: str, exit_code: int) -> int:
    sys.stdout.flush()
    _complain(message)
    return exit_code


def _complain(message: str) -> None:
    print("charjax:", " ".join(message.split("\n")), file=sys.stderr, flush=True)  # noqa: T201


def _last_words(message: str) -> None:
    if sys.stderr.isatty():
        print("\x1b[?25h", end="", file=sys.stderr)  # noqa: T201 a progress bar hid the cursor
    _complain(message)


def _environment_error(error: BaseException) -> str | None:
    """The line for an error of the machine; None for what must be a defect of charjax."""
    if isinstance(error, OSError):
        return f"{error.filename or 'the system'}: {error.strerror or error}"
    text = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return (
            "out of memory; try a smaller config.data.batch_size, config.data.seq_len or "
            f"config.model.hidden ({text.splitlines()[0] if text else 'host memory'})"
        )
    return None


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
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    train = _command(commands, "train", _train, "train or resume a run")
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

    sample = _command(commands, "sample", _sample, "write text with a trained model")
    _add_trained(sample)
    sample.add_argument("--prompt", default="", help="the text to continue")
    sample.add_argument("--num_chars", type=int, default=500, help="characters to write")
    sample.add_argument("--temperature", type=float, default=0.8, help="0: likeliest, always")
    sample.add_argument("--top_k", type=int, default=0, help="choose among the k likeliest; 0: all")
    sample.add_argument("--top_p", type=float, default=1.0, help="nucleus sampling; 1: all")
    sample.add_argument("--num_samples", type=int, default=1, help="how many texts")
    sample.add_argument("--separator", default="\n=====\n", help="between two texts")
    sample.add_argument("--seed", type=int, default=0)
    _add_unknown(sample)

    score = _command(commands, "score", _score, "measure how well a model predicts a text")
    _add_trained(score)
    score.add_argument("--file", required=True, help="a text file, or - for standard input")
    _add_unknown(score)

    export = _command(commands, "export", _export, "write a model as a program without charjax")
    _add_trained(export)
    export.add_argument("--out", required=True, help="the folder to write")

    info = _command(commands, "info", _info, "describe a config or a trained model as JSON")
    _add_config(info, required=False)
    info.add_argument("--workdir", help="the folder of a run")

    verify = _command(commands, "verify", _verify, "check every checkpoint of a run")
    verify.add_argument("--workdir", required=True, help="the folder of a run")

    for command in commands.choices.values():
        flags = [f for action in command._actions for f in action.option_strings]
        command.set_defaults(flags=flags)
    return parser


def _command(commands: Any, name: str, run: Callable[..., None], about: str) -> Any:
    command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
    command.set_defaults(run=run)
    return command


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


def _split_config_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes `--config=...` and `--config.field=...`, or their two-word forms, out of the rest."""
    config_flags: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, _ = word.partition("=")
        if name != "--config" and not name.startswith("--config."):
            rest.append(word)
        elif equals:
            config_flags.append(word)
        else:
            value = next(words, None)
            if value is None:
                raise InputError(f"{word}: a value is missing; write {word}=VALUE")
            config_flags.append(f"{word}={value}")
    return config_flags, rest


def _load_config(config_flags: Sequence[str]) -> tuple[str, Config]:
    """The run's name and config, from `--config=FILE` and its overrides.

    Raises:
      InputError: there is no such file, it fails, or an override does not fit.
    """
    files = [flag for flag in config_flags if flag.startswith("--config=")]
    if len(files) != 1:
        raise InputError("--config: give one config file, such as --config=configs/shakespeare.py")
    path, _, argument = files[0].removeprefix("--config=").partition(":")
    if not Path(path).is_file():
        raise InputError(f"--config={path}: no such file; the shipped ones are in configs/")
    values = _read_config_file(files[0], path, config_flags)
    from charjax.config import from_config_dict

    stem = Path(path).stem
    return (f"{stem}-{argument}" if argument else stem), from_config_dict(values)


def _read_config_file(file_flag: str, path: str, config_flags: Sequence[str]) -> Any:
    from absl import flags
    from ml_collections import config_flags as ml_flags

    # A flag holder of our own, so that nothing is global; ml_collections finds the
    # overrides in sys_argv before the flags are parsed.
    holder = flags.FlagValues()
    overrides = [flag for flag in config_flags if flag != file_flag]
    argv = ["charjax", file_flag, *overrides]
    ml_flags.DEFINE_config_file("config", flag_values=holder, sys_argv=argv)
    try:
        holder(argv)
        return holder.config.to_dict()
    except CharjaxError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(_config_message(error, path, overrides)) from error
    except Exception as error:
        raise InputError(f"--config={path}: {type(error).__name__}: {error}") from error


def _config_message(error: Exception, path: str, overrides: Sequence[str]) -> str:
    """One line that names the override or the file that caused the error."""
    text = " ".join(str(error).split())
    names = [(o, o.partition("=")[0].removeprefix("--config.")) for o in overrides]
    guilty = [o for o, name in names if name in text]
    guilty += [o for o, name in names if any(part in text for part in name.split("."))]
    where = (guilty or [f"--config={path}"])[0]
    if isinstance(error, KeyError | AttributeError) and guilty:
        nearest = re.search(r'Did you mean "(\w+)"', text)
        return f"{where}: no such field; " + (
            f"did you mean {nearest[1]}?" if nearest else "charjax/config.py lists them"
        )
    return f"{where}: {text}"


def _check_characters(arguments: Sequence[str]) -> None:
    """Raises InputError for an argument that was not UTF-8, whose bytes became surrogates."""
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            shown = argument.encode("utf-8", "backslashreplace").decode()
            raise InputError(f"{shown}: not valid UTF-8; write the argument in UTF-8") from None


def _set_up_jax() -> None:
    """Compiled programs are kept in the user's own cache, so that the second call is quick."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "charjax" / "jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        # With fewer threads than this, forced host devices deadlock on few cores.
        os.environ.setdefault("NPROC", "16")


def _report(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201


def _train(args: argparse.Namespace) -> None:
    from charjax.display import SilentDisplay, make_display
    from charjax.processes import is_first, joined
    from charjax.train.loop import train

    name, config = _load_config(args.config_flags)
    workdir = Path(args.workdir) if args.workdir else Path("runs") / name
    allow = [name for name in args.allow.split(",") if name]
    with joined(_place(args), native_log=workdir / "process-{}.log"):
        display = make_display(sys.stdout) if is_first() else SilentDisplay()
        train(config, workdir, display, allow=allow)


def _place(args: argparse.Namespace) -> Place | None:
    """This process's place among several; None where JAX is to find it."""
    from charjax.processes import Place

    coordinator, process_id, num_processes = args.coordinator, args.process_id, args.num_processes
    if num_processes == 1 or (coordinator, process_id, num_processes) == (None, None, None):
        return Place("", 0, 1) if num_processes else None
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


def _trained(args: argparse.Namespace) -> Trained:
    from charjax.generate.trained import load_trained

    return load_trained(Path(args.workdir), which=args.checkpoint, report=_report)


def _sample(args: argparse.Namespace) -> None:
    from charjax.generate.sample import Sampling, write_texts

    sampling = Sampling(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed
    )
    pieces = write_texts(
        _trained(args),
        args.prompt,
        num_chars=args.num_chars,
        num_samples=args.num_samples,
        separator=args.separator,
        sampling=sampling,
        unknown=args.unknown,
    )
    for piece in pieces:
        sys.stdout.buffer.write(piece.encode("utf-8"))
        sys.stdout.flush()
    if sys.stdout.isatty():
        _report("")


def _score(args: argparse.Namespace) -> None:
    from charjax.display import make_display
    from charjax.generate.score import score_file

    with make_display(sys.stderr).task("scoring") as update:
        result = score_file(_trained(args), args.file, unknown=args.unknown, progress=update)
    _print_json(result.to_json())


def _export(args: argparse.Namespace) -> None:
    from charjax.generate.export import export_model

    export_model(_trained(args), Path(args.out), report=_report)


def _info(args: argparse.Namespace) -> None:
    from charjax.generate.info import config_info, trained_info

    if bool(args.workdir) == bool(args.config_flags):
        raise InputError("info: give either --config=FILE or --workdir=DIR")
    if args.workdir:
        args.checkpoint = "best"
        _print_json(trained_info(_trained(args)))
    else:
        _print_json(config_info(_load_config(args.config_flags)[1], report=_report))


def _verify(args: argparse.Namespace) -> None:
    from charjax.checkpoint import Checkpoints
    from charjax.errors import CheckpointError
    from charjax.folder import RunFolder

    directory = RunFolder(Path(args.workdir)).checkpoints
    with Checkpoints(directory, keep=1, report=_report) as saved:
        verdicts = saved.verify()
    for step, problem in verdicts:
        _report(f"{directory / str(step)}: {problem or 'good'}")
    if not any(problem == "" for _, problem in verdicts):
        raise CheckpointError(f"{directory}: holds no checkpoint that verifies")
    _print_json({str(step): problem or "good" for step, problem in verdicts})


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values))  # noqa: T201
