"""Where a text ends, and the characters that it may have."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.inference.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What a text may hold, and where it ends.

    Attributes:
      stop: the text ends before the first of these strings.
      until_lines: the text ends after this many lines; 0: it does not.
      forbid: characters that are never sampled.
      only: the only characters that are sampled; "": all.
    """

    stop: tuple[str, ...] = ()
    until_lines: int = 0
    forbid: str = ""
    only: str = ""

    def restrict(self, sampling: Sampling, vocab: Vocab) -> Sampling:
        """The sampling without the characters that a text may not have.

        Raises:
          InputError: a character is outside the vocabulary, or none is left.
        """
        if not self.forbid and not self.only:
            return sampling
        only = set(vocab.encode(self.only).tolist()) or {*range(len(vocab))}
        tokens = {*range(len(vocab))} - only | set(vocab.encode(self.forbid).tolist())
        tokens -= {vocab.boundary_id}
        if len(tokens) == len(vocab.characters):
            raise InputError("--forbid and --only: they leave no character to sample")
        biases = tuple((token, -math.inf) for token in sorted(tokens))
        return replace(sampling, logit_bias=sampling.logit_bias + biases)


class TextEnd:
    """Decodes the tokens of one text up to its end.

    Attributes:
      finished: "" until the end is known; then "stop" (a stop string, the last line, the end of the
        document) or "length".
      num_tokens: tokens of the text so far.
    """

    def __init__(self, vocab: Vocab, controls: Controls, num_chars: int) -> None:
        self.finished, self.num_tokens = "", 0
        self._vocab, self._controls, self._num_chars = vocab, controls, num_chars
        self._decoder, self._held, self._lines = vocab.decoder(), "", 0

    def read(self, ids: Int[np.ndarray, " n"]) -> str:
        """The text that is safe to show: no later token takes any of it away."""
        if self.finished:
            return ""
        ids = ids[: self._num_chars - self.num_tokens]
        ends = np.flatnonzero(ids == self._vocab.boundary_id)
        ids = ids[: ends[0]] if ends.size else ids
        self._held += self._decoder.decode(ids)
        self.num_tokens += ids.size
        if ends.size:
            self.finished = "stop"
        elif self.num_tokens == self._num_chars:
            self.finished = "length"
        if self.finished:
            self._held += self._decoder.flush()
        end = self._find_end()
        if end is not None:
            self.finished = "stop"
            self.num_tokens -= len(
                self._held[end:].encode() if self._is_bytes else self._held[end:]
            )
        elif not self.finished:
            end = self._safe_length()
        text, self._held = self._held[:end], "" if self.finished else self._held[end:]
        self._lines += text.count("\n")
        return text

    @property
    def _is_bytes(self) -> bool:
        return self._vocab.unit == "byte"

    def _find_end(self) -> int | None:
        """Where the held text ends, by a stop string or the number of lines; None: not in it."""
        found = (self._held.find(stop) for stop in self._controls.stop)
        ends = [position for position in found if position >= 0]
        lines = self._controls.until_lines - self._lines
        if self._controls.until_lines and self._held.count("\n") >= lines:
            ends.append(len("\n".join(self._held.split("\n", lines)[:lines])) + 1)
        return min(ends, default=None)

    def _safe_length(self) -> int:
        """How much of the held text cannot be part of a stop string."""
        lengths = (
            length
            for stop in self._controls.stop
            for length in range(1, len(stop))
            if self._held.endswith(stop[:length])
        )
        return len(self._held) - max(lengths, default=0)
