"""Measure a model's loss on a text, as JSON."""

from __future__ import annotations

import argparse
import logging
import sys

from charjax.cli.arguments import add_inference, add_model, load_model, print_json

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the text."""
    add_model(parser)
    parser.add_argument("--file", required=True, help="a text file, or - for standard input")
    add_inference(parser)


def run(args: argparse.Namespace) -> None:
    """Prints the cross entropy in nats and bits per character, and the perplexity."""
    from charjax.inference.score import score_file
    from charjax.runtime.display import make_display, show_messages

    display = make_display(sys.stderr)
    with show_messages(display), display.task("scoring") as update:
        result = score_file(load_model(args), args.file, unknown=args.unknown, progress=update)
    values = result.to_json()
    if values["perplexity"] is None:
        _logger.warning("the perplexity exceeds the range of a float and is written as null")
    print_json(values)
