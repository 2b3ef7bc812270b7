"""Texts from a file or standard input, such as the prompts of `charjax sample`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from charjax.errors import InputError
from charjax.runtime.terminal import escape_hint

_logger = logging.getLogger(__name__)


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts that `--prompt`, `--prompt_file` or `--prompts` give.

    Raises:
      InputError: several of them are given, or a file has no line or cannot be read as UTF-8.
    """
    if not args.prompts:
        return [_prompt(args)]
    if args.prompt:
        raise InputError("--prompts: give it or --prompt, not both")
    text = read_utf8(args.prompts, "--prompts")
    if not text:
        raise InputError(f"--prompts={args.prompts}: is empty; write a prompt in each line")
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def _prompt(args: argparse.Namespace) -> str:
    """The prompt that `--prompt` or `--prompt_file` gives."""
    if not args.prompt_file:
        if hint := escape_hint(args.prompt):
            _logger.warning("--prompt: %s, or give --prompt_file=FILE (- is standard input)", hint)
        return str(args.prompt)
    if args.prompt:
        raise InputError("--prompt_file: give it or --prompt, not both")
    return read_utf8(args.prompt_file, "--prompt_file")


def read_utf8(file: Path, flag: str) -> str:
    """The text of a file that a flag names, or of standard input for "-".

    Raises:
      InputError: it cannot be read as UTF-8.
    """
    try:
        data: bytes = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{flag}={file}: not valid UTF-8 ({error})") from error
    except OSError as error:
        raise InputError(f"{flag}={file}: {error.strerror}; name a file") from error
