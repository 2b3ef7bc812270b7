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
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--file", help="a text file, or - for standard input")
    text.add_argument(
        "--part",
        choices=("val", "test"),
        help="the validation or test part of the text that the run was trained on",
    )
    add_inference(parser)


def run(args: argparse.Namespace) -> None:
    """Prints the cross entropy in nats and bits per character, and the perplexity."""
    from charjax.inference.score import score_file, score_part
    from charjax.runtime.display import make_display, show_messages

    display = make_display(sys.stderr)
    with show_messages(display), display.task("scoring") as update:
        trained = load_model(args)
        if args.part:
            result = score_part(trained, args.part, update)
        else:
            result = score_file(trained, args.file, unknown=args.unknown, progress=update)
    values = result.to_json()
    if values["perplexity"] is None:
        _logger.warning("the perplexity exceeds the range of a float and is written as null")
    print_json(values)
