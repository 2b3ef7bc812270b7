"""Generate text with a trained model."""

from __future__ import annotations

import argparse
import logging
import sys

from charjax.cli.arguments import add_inference, add_model, load_model

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the prompt, and how characters are sampled."""
    add_model(parser)
    for flag, default, about in (
        ("--prompt", "", "the text to continue; default: none"),
        ("--num_chars", 500, "characters to generate; default: %(default)s"),
        ("--temperature", 0.8, "divides the logits; 0: greedy decoding; default: %(default)s"),
        ("--top_k", 0, "sample from the k likeliest characters; 0, the default: from all"),
        ("--top_p", 1.0, "nucleus sampling with this total probability; 1, the default: off"),
        ("--num_samples", 1, "how many texts; default: %(default)s"),
        ("--separator", "\n=====\n", "printed between two texts; default: a line of ====="),
        ("--seed", 0, "the same seed gives the same texts; default: %(default)s"),
    ):
        parser.add_argument(flag, type=type(default), default=default, help=about)
    add_inference(parser)


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
