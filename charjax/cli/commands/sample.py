"""Generate text with a trained model."""

from __future__ import annotations

import argparse
import logging
import re
import sys

from charjax.cli.arguments import add_inference, add_model, load_model, local_path
from charjax.errors import InputError

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the prompt, and how to sample."""
    add_model(parser, required=False)
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
    parser.add_argument(
        "--prompt_file",
        type=local_path("--prompt_file"),
        help="a file with the text to continue, or - for standard input",
    )
    parser.add_argument(
        "--no_prompt", action="store_true", help="write the continuation without the prompt"
    )
    add_inference(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the texts, and nothing else, to standard output."""
    from charjax.inference.sampling import Sampling
    from charjax.inference.texts import write_texts
    from charjax.runtime.terminal import TextWriter

    sampling = Sampling(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed
    )
    pieces = write_texts(
        load_model(args),
        _prompt(args),
        num_chars=args.num_chars,
        num_samples=args.num_samples,
        separator=args.separator,
        sampling=sampling,
        unknown=args.unknown,
        show_prompt=not args.no_prompt,
    )
    writer = TextWriter(sys.stdout)
    for piece in pieces:
        writer.write(piece)
    writer.close()


def _prompt(args: argparse.Namespace) -> str:
    """The prompt that the flags give.

    Raises:
      InputError: both flags give one, or the file cannot be read as UTF-8.
    """
    if not args.prompt_file:
        if re.search(r"\\[ntr]", args.prompt):
            _logger.warning(
                "--prompt: a backslash has no special meaning; for line ends give "
                "--prompt_file=FILE (or - for standard input), or write $'...' in the shell"
            )
        prompt: str = args.prompt
        return prompt
    if args.prompt:
        raise InputError("--prompt_file: give it or --prompt, not both")
    try:
        is_input = str(args.prompt_file) == "-"
        data: bytes = sys.stdin.buffer.read() if is_input else args.prompt_file.read_bytes()
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"--prompt_file={args.prompt_file}: not valid UTF-8 ({error})") from error
    except OSError as error:
        raise InputError(f"--prompt_file={args.prompt_file}: {error.strerror}") from error
