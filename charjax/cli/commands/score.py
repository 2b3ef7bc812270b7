"""Measure a model's loss on a text, whole or character by character, as JSON."""

from __future__ import annotations

import argparse
import logging
import sys

from charjax.cli.arguments import (
    add_inference,
    add_model,
    add_reading,
    load_model,
    print_json,
    reading_options,
)
from charjax.errors import InputError

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
    parser.add_argument(
        "--per_char",
        action="store_true",
        help="a JSON object for each character but the first, one per line: the character, its "
        "loss in nats, its rank among all characters, and the five likeliest ones",
    )
    add_inference(parser)
    about = "how to read a --file that differs from the run's text; values as in config.data"
    add_reading(parser, about)


def run(args: argparse.Namespace) -> None:
    """Prints the cross entropy in nats and bits, and the perplexity; or a line per character."""
    import numpy as np

    from charjax.inference.predictions import predict, prediction_records
    from charjax.inference.score import read_file, read_part, score_text
    from charjax.runtime.display import make_display, show_messages

    options = reading_options(args)
    if args.part and options:
        raise InputError(f"--{next(iter(options))}: needs --file; --part is read as in training")
    display = make_display(sys.stderr)
    with show_messages(display), display.task("scoring") as update:
        trained = load_model(args)
        if args.part:
            ids = read_part(trained, args.part)
        else:
            ids = read_file(trained, args.file, unknown=args.unknown, options=options)
        if args.per_char:
            ids = np.asarray(ids, np.int32)
            records = prediction_records(trained.vocab, ids, predict(trained, ids, update))
        else:
            records = iter([score_text(trained, ids, update).to_json()])
    for record in records:
        if record.get("perplexity", 0) is None:
            _logger.warning("the perplexity exceeds the range of a float and is written as null")
        print_json(record)
