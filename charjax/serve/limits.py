"""The limits of requests: what a server accepts at most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from charjax.inference.options import MAX_CHARS
from charjax.schema import check_flags, number


def _at_least_1(default: int) -> Any:
    return number(default, 1, math.inf, "at least 1")


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Bounds of requests; a flag of `charjax serve` each.

    Attributes:
      max_body: bytes of a request's body.
      max_prompt: characters, or ids, of a prompt.
      max_tokens: characters of a text.
      max_texts: texts of a request: prompts times `n`.
      max_queue: texts that wait while all rows of a model's batch are taken.
      max_seconds: from a request to the end of its answer.

    Raises:
      InputError: a bound is out of range.
    """

    max_body: int = _at_least_1(4 * 2**20)
    max_prompt: int = _at_least_1(200_000)
    max_tokens: int = number(100_000, 1, MAX_CHARS)
    max_texts: int = _at_least_1(128)
    max_queue: int = _at_least_1(256)
    max_seconds: int = _at_least_1(600)

    def __post_init__(self) -> None:
        check_flags(self)
