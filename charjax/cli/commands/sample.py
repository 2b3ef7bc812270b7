"""Generate text with a trained model."""

from __future__ import annotations

import argparse
import logging
import sys

from charjax.cli.arguments import add_model, add_unknown, add_weights, load_model

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the prompt, and how characters are sampled."""
    add_model(parser)
    parser.add_argument("--prompt", default="", help="the text to continue; default: none")
    parser.add_argument(
        "--num_chars", type=int, default=500, help="characters to generate; default: %(default)s"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="divides the logits; 0: greedy decoding; default: %(default)s",
    )
    parser.add_argument(
        "--top_k", type=int, default=0, help="sample from the k likeliest characters; default: all"
    )
    parser.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        help="nucleus sampling: sample from the fewest characters of this probability; default: 1",
    )
    parser.add_argument("--num_samples", type=int, default=1, help="how many texts; default: 1")
    parser.add_argument("--separator", default="\n=====\n", help="printed between two texts")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same texts; default: 0"
    )
    add_weights(parser)
    add_unknown(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the texts, and nothing else, to standard output."""
    from charjax.inference.sampling import Sampling
    from charjax.inference.texts import write_texts

    sampling = Sampling(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed
    )
    pieces = write_texts(
        load_model(args),
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
        _logger.info("")  # ends the last line, of which the text itself has no end
