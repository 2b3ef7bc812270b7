"""Verify every checkpoint of a run, as JSON."""

from __future__ import annotations

import argparse
import logging

from charjax.cli.arguments import add_workdir, print_json
from charjax.errors import CheckpointError

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's folder."""
    add_workdir(parser, "a run's folder", required=True)


def run(args: argparse.Namespace) -> None:
    """Prints {step: "good", or its damage}.

    Raises:
      CheckpointError: no step is good.
    """
    from charjax.checkpoint.reader import CheckpointReader
    from charjax.inference.load import load_recorded
    from charjax.workdir import Workdir

    if Workdir(args.workdir).is_hub:
        print_json({str(load_recorded(args.workdir, which="best").step): "good"})
        return
    directory = Workdir(args.workdir).checkpoints
    problems = CheckpointReader(directory).verify()
    verdicts = {step: problem or "good" for step, problem in problems}
    for step, verdict in verdicts.items():
        _logger.info(f"{directory / str(step)}: {verdict}")
    if "good" not in verdicts.values():
        raise CheckpointError(f"{directory}: holds no checkpoint that verifies")
    print_json({str(step): verdict for step, verdict in verdicts.items()})
