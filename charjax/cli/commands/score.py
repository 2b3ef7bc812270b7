"""Measure a model's loss on a text, whole or character by character, as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from charjax.cli.arguments import (
    add_inference,
    add_model,
    add_reading,
    from_flags,
    load_model,
    print_json,
    reading_options,
)
from charjax.errors import InputError
from charjax.inference.options import DynamicOptions

if TYPE_CHECKING:
    from charjax.inference.scoring.score import Method

_logger = logging.getLogger(__name__)

# Help of the flags that are fields of `DynamicOptions`.
_DYNAMIC = {
    "learning_rate": "of each update",
    "decay": "by how much the weights go back to the trained ones after each segment",
    "epsilon": "added to the root mean square of the gradients",
    "segment": "characters between two updates",
}


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
    _add_methods(parser)
    add_inference(parser)
    add_reading(parser)


def _add_methods(parser: argparse.ArgumentParser) -> None:
    """How the text is read."""
    group = parser.add_argument_group("method", "default: one pass over the text with its carry")
    methods = group.add_mutually_exclusive_group()
    methods.add_argument(
        "--window",
        type=int,
        default=0,
        metavar="N",
        help="set the carry to zero before each N characters, so that each character is predicted "
        "from at most N; 0, the default: never",
    )
    methods.add_argument(
        "--dynamic",
        action="store_true",
        help="dynamic evaluation (Krause et al. 2018): learn from each segment after its score",
    )
    for name, default in dataclasses.asdict(DynamicOptions()).items():
        about = f"with --dynamic: {_DYNAMIC[name]}; default: {default}"
        group.add_argument(f"--{name}", type=type(default), help=about)


def run(args: argparse.Namespace) -> None:
    """Prints the cross entropy in nats and bits, and the perplexity; or a line per character."""
    from charjax.inference.scoring.predictions import predict, prediction_records
    from charjax.inference.scoring.score import read_file, read_part, score_text
    from charjax.runtime.display import show_task

    options = reading_options(args)
    unused = [*options, *(["unknown"] if args.unknown != "error" else [])]
    if args.part and unused:
        raise InputError(f"--{unused[0]}: needs --file; --part is read as in training")
    method, how = _method(args)
    with show_task("scoring") as update:
        trained = load_model(args, args.workdir)
        if args.part:
            ids = read_part(trained, args.part)
        else:
            ids = read_file(trained, args.file, unknown=args.unknown, options=options)
        if args.per_char:
            records = prediction_records(trained.vocab, ids, predict(trained, ids, update, method))
        else:
            records = iter([score_text(trained, ids, update, method).to_json() | how])
    for record in records:
        if record.get("perplexity", 0) is None:
            _logger.warning("the perplexity exceeds the range of a float and is written as null")
        print_json(record)


def _method(args: argparse.Namespace) -> tuple[Method, dict[str, Any]]:
    """How the flags say that the text is read, and what the result says about it."""
    from charjax.inference.scoring.score import dynamically, in_windows

    given = [name for name in _DYNAMIC if getattr(args, name) is not None]
    if args.dynamic:
        options = from_flags(DynamicOptions, args)
        return dynamically(options), {"dynamic": dataclasses.asdict(options)}
    if given:
        raise InputError(f"--{given[0]}: needs --dynamic")
    return in_windows(args.window), {"window": args.window} if args.window else {}
