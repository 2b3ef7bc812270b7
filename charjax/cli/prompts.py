"""The prompts of `charjax sample`: from a flag, a file, or standard input."""

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
    text = _read(args.prompts, "--prompts")
    if not text:
        raise InputError(f"--prompts={args.prompts}: is empty; write a prompt in each line")
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def _prompt(args: argparse.Namespace) -> str:
    """The prompt that `--prompt` or `--prompt_file` gives."""
    if not args.prompt_file:
        if hint := escape_hint(args.prompt):
            _logger.warning("--prompt: %s, or give --prompt_file=FILE (- is standard input)", hint)
        prompt: str = args.prompt
        return prompt
    if args.prompt:
        raise InputError("--prompt_file: give it or --prompt, not both")
    return _read(args.prompt_file, "--prompt_file")


def _read(file: Path, flag: str) -> str:
    """The text of a file, or of standard input."""
    try:
        data: bytes = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{flag}={file}: not valid UTF-8 ({error})") from error
    except OSError as error:
        raise InputError(f"{flag}={file}: {error.strerror}") from error
