"""Train or resume a run."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from charjax.cli.arguments import add_config, add_workdir, local_path
from charjax.cli.config_flags import load_config
from charjax.errors import InputError

if TYPE_CHECKING:
    from charjax.runtime.distributed import ProcessSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The config, the run's folder, and this process's place among several."""
    add_config(parser, required=True)
    add_workdir(parser, "the run's folder; default: runs/<name of the config>")
    parser.add_argument(
        "--allow",
        default="",
        metavar="NAME[,NAME]",
        help="what may differ from the saved run that is resumed: corpus, vocabulary, or config "
        "fields or sections such as config.optim.learning_rate",
    )
    parser.add_argument(
        "--init_from",
        type=local_path("--init_from"),
        help="a run's folder, or one of a model hub, whose best weights to start from; short for "
        "--config.train.init_from",
    )
    several = parser.add_argument_group(
        "several processes", "not needed under SLURM, Open MPI and others that JAX detects"
    )
    several.add_argument("--coordinator", help="HOST:PORT of process 0, the same on all processes")
    several.add_argument("--process_id", type=int, help="this process's number, from 0")
    several.add_argument("--num_processes", type=int, help="how many processes train together")


def run(args: argparse.Namespace) -> None:
    """Trains until a limit, a signal or an error ends the run."""
    from charjax.runtime.display import LastingStream, make_display
    from charjax.runtime.distributed import is_primary, join_processes
    from charjax.train.loop import train

    flags = [f"--config.train.init_from={args.init_from}"] if args.init_from else []
    name, config = load_config([*args.config_flags, *flags])
    workdir = args.workdir or Path("runs", name)
    allow = [name for name in args.allow.split(",") if name]
    with (
        join_processes(_process_spec(args), native_log=workdir / "process-{}.log"),
        open(os.devnull, "w") as nowhere,
    ):
        shown = LastingStream(sys.stdout if is_primary() else nowhere, _report_loss)
        train(config, workdir, make_display(shown), allow=allow)


def _report_loss(reason: str) -> None:
    """Says that standard output is lost."""
    from charjax.runtime.display import LastingStream

    line = f"charjax: standard output: {reason}; the run goes on without it"
    print(line, file=LastingStream(sys.stderr), flush=True)


def _process_spec(args: argparse.Namespace) -> ProcessSpec | None:
    """This process's place among several, by the flags; None: JAX detects it."""
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
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id}: must be from 0 to {num_processes - 1}, one below "
            f"--num_processes={num_processes}"
        )
    return ProcessSpec(coordinator, process_id, num_processes)
