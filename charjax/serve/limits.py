"""What a server accepts at most."""

from __future__ import annotations

from dataclasses import dataclass, fields

from charjax.errors import InputError


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
      InputError: a bound is below 1.
    """

    max_body: int = 4 * 2**20
    max_prompt: int = 200_000
    max_tokens: int = 100_000
    max_texts: int = 128
    max_queue: int = 256
    max_seconds: int = 600

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) < 1:
                raise InputError(f"--{field.name}={value}: must be at least 1")
