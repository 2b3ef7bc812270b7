"""Verify every checkpoint of a run and its text, or every shard of a packed text, as JSON."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from charjax.cli.arguments import add_path, print_json
from charjax.errors import CheckpointError, InputError, StoreError

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's folder, or the packed text."""
    about = "a packed text: a folder, or an address such as gs://bucket/folder"
    add_path(parser, "store", about, is_local=False, metavar="STORE", nargs="?")
    add_path(parser, "--workdir", "a run's folder")


def run(args: argparse.Namespace) -> None:
    """Prints {step or shard: "good", or its damage}.

    Raises:
      CheckpointError: no step is good.
      StoreError: a shard is not good, or the text is not the one that the run was trained on.
    """
    if bool(args.store) == bool(args.workdir):
        raise InputError("verify: give either a STORE or --workdir")
    if args.store:
        if Path(args.store, "checkpoints").is_dir():
            raise InputError(f"{args.store}: is a run's folder; give --workdir={args.store}")
        _verify_store(args.store)
    else:
        _verify_run(args.workdir)


def _verify_store(path: str) -> None:
    from charjax.data.packed.store import TextStore
    from charjax.runtime.display import show_task

    store = TextStore(path)
    with show_task("verifying") as update:
        verdicts = {str(shard): problem or "good" for shard, problem in store.verify(update)}
    print_json(verdicts)
    if damaged := [verdict for verdict in verdicts.values() if verdict != "good"]:
        raise StoreError(f"{damaged[0]} (damaged shards: {len(damaged)} of {len(verdicts)})")


def _verify_run(workdir: Path) -> None:
    from charjax.checkpoint.meta import CheckpointMeta
    from charjax.checkpoint.reader import CheckpointReader
    from charjax.inference.load import load_trained
    from charjax.inference.training_text import verify_text
    from charjax.runtime.display import show_task
    from charjax.workdir import Workdir

    if Workdir(workdir).is_hub:
        print_json({str(load_trained(workdir, which="best").step): "good"})
        return
    directory = Workdir(workdir).checkpoints
    reader = CheckpointReader(directory)
    verdicts = {step: problem or "good" for step, problem in reader.verify()}
    for step, verdict in verdicts.items():
        _logger.info(f"{directory / str(step)}: {verdict}")
    print_json({str(step): verdict for step, verdict in verdicts.items()})
    if "good" not in verdicts.values():
        raise CheckpointError(f"{directory}: holds no checkpoint that verifies")
    run = CheckpointMeta.of(reader.read_meta(), directory).run
    with show_task("reading the text"):
        verify_text(run)
