"""Generate text with a trained model."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from charjax.cli.arguments import (
    add_fields,
    add_inference,
    add_model,
    add_option,
    add_path,
    from_flags,
    load_model,
)
from charjax.cli.prompts import read_prompts
from charjax.errors import InputError
from charjax.inference.options import Controls, Sampling

if TYPE_CHECKING:
    from charjax.inference.texts.prompt import Prompt
    from charjax.inference.texts.sampler import TextSampler

_logger = logging.getLogger(__name__)

_NUM_CHARS = 500  # of a text; with --until_lines, of a line
_TEMPERATURE = 0.8

# Default and help of each flag; a flag whose default is False takes no value.
_OPTIONS = {
    "prompt": ("", "the text to continue; default: none"),
    "num_samples": (1, "how many texts; default: %(default)s"),
    "separator": ("\n=====\n", "printed between two texts; default: a line of ====="),
    "no_prompt": (False, "write the continuation without the prompt"),
    "json": (
        False,
        "write each text as a JSON object, with the log-probabilities of its characters",
    ),
    "pick": (0, "choose each word among this many of the likeliest; interactive"),
}
# Help of the flags that are fields of `Sampling` and of `Controls`.
_SAMPLING = {
    "temperature": "divides the logits; 0: greedy decoding; default: %(default)s",
    "top_k": "sample from the k likeliest characters; 0, the default: from all",
    "top_p": "nucleus sampling with this total probability; 1, the default: off",
    "min_p": "leave out characters below this fraction of the likeliest one's probability; 0, the "
    "default: none",
    "repetition_penalty": "makes recent characters less likely; 1, the default: off",
    "repetition_window": "how many characters are recent; default: %(default)s",
    "seed": "the same seed gives the same texts; default: %(default)s",
}
_CONTROLS = {
    "until_lines": "end a text after this many lines; a model of documents writes this many "
    "documents, one a line",
    "forbid": "never sample these characters",
    "only": "sample only these characters",
    "unique": "leave out lines that were written before",
    "new": "leave out lines that the training text has",
    "max_copy": "copy no passage of more characters than this from the training text",
}

# The options that have no effect beside another one.
_WITHOUT_EFFECT = {
    "pick": (
        *("json", "num_chars", "stop", "until_lines", "unique", "new", "num_samples"),
        *("separator", "seed", "temperature", "top_k", "top_p", "min_p"),
    ),
    "json": ("no_prompt", "separator"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the prompt, and how to sample."""
    add_model(parser, required=False)
    for name, (default, about) in _OPTIONS.items():
        add_option(parser, name, default, about)
    add_fields(parser, Sampling, _SAMPLING)
    parser.set_defaults(temperature=_TEMPERATURE)
    parser.add_argument(
        "--num_chars",
        type=int,
        help=f"characters to generate; default: {_NUM_CHARS}, with --until_lines for each line",
    )
    files = parser.add_mutually_exclusive_group()
    where = "or - for standard input"
    add_path(files, "--prompt_file", f"a file with the text to continue, {where}")
    add_path(files, "--prompts", f"a file with a text to continue in each line, {where}")
    controls = parser.add_argument_group("controls", "what the texts may hold, and where they end")
    controls.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end a text before this; may be given several times",
    )
    add_fields(controls, Controls, _CONTROLS)
    add_inference(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the texts, and nothing else, to standard output."""
    from charjax.inference.texts.sampler import TextSampler
    from charjax.runtime.signals import before_exit
    from charjax.runtime.terminal import TextWriter, escape_hint

    for flag in ("stop", "separator", "forbid", "only"):
        if hint := escape_hint("".join(getattr(args, flag))):
            _logger.warning("--%s: %s", flag, hint)
    sampling, controls = from_flags(Sampling, args), from_flags(Controls, args)
    prompts = read_prompts(args)
    _check_effects(args, prompts)
    trained = load_model(args, args.workdir)
    if args.num_chars is None:
        args.num_chars = _NUM_CHARS * (1 if trained.vocab.boundary else max(1, args.until_lines))
    form = _picked if args.pick else _json_lines if args.json else _plain
    sampler = TextSampler(trained, sampling, controls)
    writer = TextWriter(sys.stdout)
    with before_exit(writer.close):  # so that the message of Ctrl-C has a line of its own
        for piece in form(args, sampler, _encoded(args, sampler, prompts)):
            writer.write(piece)
    writer.close()


def _encoded(args: argparse.Namespace, sampler: TextSampler, prompts: list[str]) -> list[Prompt]:
    """The prompts as the model reads them, all before a text of one of them is written."""
    encoded = []
    for number, prompt in enumerate(prompts, 1):
        try:
            encoded.append(sampler.encode(prompt, args.unknown))
        except InputError as error:
            where = f"--prompts={args.prompts}: line {number}: " if args.prompts else ""
            raise InputError(f"{where}{error}") from None
    return encoded


def _plain(args: argparse.Namespace, sampler: TextSampler, prompts: list[Prompt]) -> Iterator[str]:
    """The texts of all prompts, with separators between them."""
    from charjax.inference.texts.sampler import write_texts

    for number, prompt in enumerate(prompts):
        if number:
            yield args.separator
        yield from write_texts(
            sampler,
            prompt,
            num_chars=args.num_chars,
            num_samples=args.num_samples,
            separator=args.separator,
            show_prompt=not args.no_prompt,
        )


def _json_lines(
    args: argparse.Namespace, sampler: TextSampler, prompts: list[Prompt]
) -> Iterator[str]:
    """A JSON object for each text."""
    vocab, sizes = sampler.vocab, {"num_chars": args.num_chars, "num_samples": args.num_samples}
    if sampler.controls.selects_lines and not vocab.boundary:
        raise InputError("--json: needs whole texts, and --unique and --new leave out lines")
    for prompt in prompts:
        for number, text in enumerate(sampler.texts(prompt, **sizes, num_top=0)):
            values = {"prompt": prompt.text(vocab), "sample": number} | text.to_json(vocab)
            yield json.dumps(values, allow_nan=False) + "\n"


def _picked(args: argparse.Namespace, sampler: TextSampler, prompts: list[Prompt]) -> Iterator[str]:
    """The text that a person chooses, word by word; the choices go to standard error."""
    from charjax.inference.texts.pick import pick_text
    from charjax.runtime.signals import before_exit
    from charjax.runtime.terminal import TextWriter

    (prompt,) = prompts
    text = start = "" if args.no_prompt else prompt.text(sampler.vocab)

    def write_so_far() -> None:
        sys.stderr.write("\n")  # ends the line of the question
        TextWriter(sys.stdout).write(text)

    with before_exit(write_so_far):
        for picked in pick_text(sampler, prompt, args.pick, _ask, unknown=args.unknown):
            text = start + picked
    yield text


def _ask(words: Sequence[str], problem: str) -> str:
    """What a person adds to a text: one of the words, by its number, or what is typed."""
    from charjax.runtime.terminal import escape_controls

    numbered = [f"{n}: {escape_controls(repr(word)[1:-1])}" for n, word in enumerate(words, 1)]
    lines = [*([problem] if problem else []), *numbered, "number, text to add, or nothing to end: "]
    sys.stderr.write("\n".join(lines))
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline().rstrip("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: not valid UTF-8 ({error})") from error
    is_number = answer.isdecimal() and 1 <= int(answer) <= len(words)
    return words[int(answer) - 1] if is_number else answer


def _check_effects(args: argparse.Namespace, prompts: Sequence[str]) -> None:
    """Refuses options that have no effect beside the others."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for mode, flags in _WITHOUT_EFFECT.items():
        given = [flag for flag in flags if getattr(args, flag) != parser.get_default(flag)]
        if mode == "pick" and len(prompts) > 1:
            given.append("prompts")
        if given and getattr(args, mode):
            raise InputError(f"--{given[0]}: has no effect with --{mode}; leave it out")
    default = parser.get_default("repetition_window")
    if args.repetition_penalty == 1 and args.repetition_window != default:
        raise InputError("--repetition_window: has no effect without --repetition_penalty")
