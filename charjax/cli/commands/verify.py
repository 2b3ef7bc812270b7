"""Verify every checkpoint of a run, or every shard of a packed text, as JSON."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from charjax.cli.arguments import add_workdir, print_json, store_path
from charjax.errors import CheckpointError, InputError, StoreError

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's folder, or the packed text."""
    parser.add_argument(
        "store",
        nargs="?",
        type=store_path("STORE"),
        help="a packed text: a folder, or an address such as gs://bucket/folder",
    )
    add_workdir(parser, "a run's folder")


def run(args: argparse.Namespace) -> None:
    """Prints {step or shard: "good", or its damage}.

    Raises:
      CheckpointError: no step is good.
      StoreError: a shard is not good.
    """
    if bool(args.store) == bool(args.workdir):
        raise InputError("verify: give either a STORE or --workdir")
    if args.store:
        _verify_store(args.store)
    else:
        _verify_run(args.workdir)


def _verify_store(path: str) -> None:
    from charjax.data.store import TextStore
    from charjax.runtime.display import make_display, show_messages

    store = TextStore(path)
    display = make_display(sys.stderr)
    with show_messages(display), display.task("verifying") as update:
        verdicts = {str(shard): problem or "good" for shard, problem in store.verify(update)}
    print_json(verdicts)
    if damaged := [verdict for verdict in verdicts.values() if verdict != "good"]:
        raise StoreError(f"{damaged[0]} ({len(damaged)} of {len(verdicts)} shards are damaged)")


def _verify_run(workdir: Path) -> None:
    from charjax.checkpoint.reader import CheckpointReader
    from charjax.inference.load import load_recorded
    from charjax.workdir import Workdir

    if Workdir(workdir).is_hub:
        print_json({str(load_recorded(workdir, which="best").step): "good"})
        return
    directory = Workdir(workdir).checkpoints
    problems = CheckpointReader(directory).verify()
    verdicts = {step: problem or "good" for step, problem in problems}
    for step, verdict in verdicts.items():
        _logger.info(f"{directory / str(step)}: {verdict}")
    if "good" not in verdicts.values():
        raise CheckpointError(f"{directory}: holds no checkpoint that verifies")
    print_json({str(step): verdict for step, verdict in verdicts.items()})
