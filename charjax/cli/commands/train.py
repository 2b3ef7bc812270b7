"""Train or resume a run."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from charjax.cli.arguments import add_config, add_path, check_process
from charjax.cli.config_flags import load_config, override
from charjax.errors import InputError

if TYPE_CHECKING:
    from charjax.config import Config
    from charjax.runtime.distributed import ProcessSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The text or config, the run's folder, and the flags of several processes."""
    parser.add_argument(
        "text",
        nargs="*",
        metavar="TEXT",
        help="instead of --config: files, folders, globs, or - for standard input; the config is "
        "chosen for them",
    )
    add_config(parser, required=True)
    add_path(parser, "--workdir", "the run's folder; default: runs/<name of the config or text>")
    parser.add_argument(
        "--minutes", type=float, help="with TEXT: how long the command may take; default: 4"
    )
    parser.add_argument(
        "--allow",
        default="",
        metavar="NAME[,NAME]",
        help="what may differ from the saved run that is resumed: corpus, vocabulary, or config "
        "fields or sections such as config.optim.learning_rate",
    )
    add_path(
        parser,
        "--init_from",
        "start from the best weights of a model: a run's or a model hub's folder, or builtin; "
        "short for --config.train.init_from",
    )
    several = parser.add_argument_group(
        "several processes", "not needed under SLURM, Open MPI and others that JAX detects"
    )
    several.add_argument("--coordinator", help="HOST:PORT of process 0, the same on all processes")
    several.add_argument("--process_id", type=int, help="this process's number, from 0")
    several.add_argument("--num_processes", type=int, help="how many processes train together")


def run(args: argparse.Namespace) -> None:
    """Trains until a limit, a signal or an error stops it."""
    from charjax.runtime.display import LastingStream, make_display, show_messages
    from charjax.runtime.distributed import is_primary, join_processes
    from charjax.train.loop import train

    started = time.monotonic()
    has_config = any(flag.startswith("--config=") for flag in args.config_flags)
    if args.text and has_config:
        raise InputError(f"{args.text[0]}: a TEXT stands in place of --config; give one of them")
    if not args.text and not has_config:
        raise InputError("train: give a TEXT, or --config, such as --config=shakespeare")
    if args.text and args.init_from:
        raise InputError("--init_from: needs a --config with the sizes of that model, not a TEXT")
    if not args.text and args.minutes is not None:
        raise InputError("--minutes: needs a TEXT; with a config, set --config.train.max_minutes")
    field = "--config.train.init_from="
    if args.init_from and any(flag.startswith(field) for flag in args.config_flags):
        raise InputError(f"--init_from: is short for {field[:-1]}; give one of them")
    flags = [f"{field}{args.init_from}"] if args.init_from else []
    name, config = ("", None) if args.text else load_config([*args.config_flags, *flags])
    workdir = args.workdir or Path("runs", name or _text_name(args.text[0]))
    allow = [name for name in args.allow.split(",") if name]
    with (
        join_processes(_process_spec(args), native_log=workdir / "process-{}.log"),
        open(os.devnull, "w", encoding="utf-8") as nowhere,
    ):
        shown = LastingStream(sys.stdout if is_primary() else nowhere, _report_loss)
        display = make_display(shown)
        if config is None:
            with show_messages(display):
                config = _choose(args, workdir, started)
        train(config, workdir, display, allow=allow)


def _choose(args: argparse.Namespace, workdir: Path, started: float) -> Config:
    """Chooses the config for the texts; `started` is when the command began, `time.monotonic`."""
    from charjax.runtime.distributed import is_multiprocess
    from charjax.train.choice import choose_config

    if args.minutes is not None and not 0.1 <= args.minutes <= 10**6:
        raise InputError(f"--minutes={args.minutes:g}: must be from 0.1 to 1,000,000")
    if is_multiprocess():
        raise InputError("train: several processes need the same --config, not a TEXT")
    if "" in args.text:
        raise InputError("TEXT: is empty, as from a variable that is not set; name a file")
    for field in ("--config.data.path", "--config.data.corpus"):
        if any(flag.startswith(f"{field}=") for flag in args.config_flags):
            raise InputError(f"{field}: TEXT is what is trained on; give one of them")
    is_input = args.text == ["-"]
    if not is_input and any(text == "-" or ("," in text and args.text[1:]) for text in args.text):
        raise InputError("TEXT: neither - nor a name with a comma goes together with other texts")
    return choose_config(
        _standard_input(workdir) if is_input else ",".join(args.text),
        workdir,
        args.minutes,
        lambda config: override(config, args.config_flags, drops_unused=True),
        started,
    )


def _standard_input(workdir: Path) -> bytes:
    """The text of standard input; empty at a terminal if the run has saved its text already."""
    from charjax.workdir import Workdir

    if sys.stdin.isatty() and Workdir(workdir).choice.exists():
        return b""
    return sys.stdin.buffer.read()


def _text_name(text: str) -> str:
    """The default name of a run on a text: the name of the file or folder."""
    return re.sub(r"[^\w.-]+", "_", Path(text).stem).strip("_.-") or "text"


def _report_loss(reason: str) -> None:
    """Prints to stderr that standard output cannot be written to."""
    from charjax.runtime.display import LastingStream

    line = f"charjax: standard output: {reason}; the run goes on without it"
    print(line, file=LastingStream(sys.stderr), flush=True)


def _process_spec(args: argparse.Namespace) -> ProcessSpec | None:
    """The coordinator and this process's number, from the flags; None if JAX is to detect them."""
    from charjax.runtime.distributed import ProcessSpec

    coordinator, process_id, num_processes = args.coordinator, args.process_id, args.num_processes
    if (coordinator, process_id, num_processes) == (None, None, None):
        return None
    if num_processes == 1 and process_id in (None, 0):
        return ProcessSpec("", process_id=0, num_processes=1)
    if None in (coordinator, process_id, num_processes):
        raise InputError("give --coordinator, --process_id and --num_processes together, or none")
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise InputError(f"--coordinator={coordinator}: must be HOST:PORT, such as node1:12345")
    check_process(process_id, num_processes)
    return ProcessSpec(coordinator, process_id, num_processes)
