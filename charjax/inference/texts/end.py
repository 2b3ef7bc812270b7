"""Streaming detokenization: a sample is decoded as its tokens arrive, up to where it ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from charjax.data.vocab import Vocab
from charjax.inference.options import NO_CONTROLS, Controls
from charjax.inference.sampling.rows import Sampled


class Text(NamedTuple):
    """One sample as a text.

    Attributes:
      text: without the prompt.
      finished: see `TextEnd`.
      ids: its tokens.
      logprobs: of its tokens, see `Sampled`; None where not asked for.
    """

    text: str
    finished: str
    ids: Int[np.ndarray, " n"]
    logprobs: Float[np.ndarray, " n"] | None = None

    def to_json(self, vocab: Vocab) -> dict[str, Any]:
        """JSON values: the text, how it ended, and its tokens with their log-probabilities."""
        return {
            "text": self.text,
            "finished": self.finished,
            "tokens": [vocab.characters[token] for token in self.ids],
            "logprobs": np.asarray(self.logprobs).tolist(),
        }


class TextEnd:
    """The text of one sample, decoded incrementally, up to where it ends.

    It is the same text however its tokens are cut into chunks.

    Attributes:
      finished: "" while it goes on; "stop" where it ended by itself, by a stop text or after its
        lines; "length" after its last token.
      num_tokens: how many tokens the text has, once it is finished.
    """

    def __init__(
        self,
        vocab: Vocab,
        num_chars: int,
        controls: Controls = NO_CONTROLS,
        *,
        known: Container[str] = (),
        prompt: str = "",
    ) -> None:
        """Starts a text.

        Args:
          vocab: of the model.
          num_chars: tokens after which it ends.
          controls: where it ends before, and which of its lines stay.
          known: the lines of the training text, for `Controls.new`.
          prompt: the text before it; its last line goes on.
        """
        self.finished, self.num_tokens = "", 0
        self._controls, self._left, self._held = controls, num_chars, ""
        self._tokens = _Tokens(vocab)
        self._lines = Lines(controls, known, prompt)

    def read(self, ids: Int[np.ndarray, " n"]) -> str:
        """Reads the next tokens; those after the end are ignored.

        Returns:
          The text that they add, without what may be the beginning of a stop text, and without
          an unfinished line where lines may be left out.
        """
        if self.finished:
            return ""
        ids = ids[: self._left]
        self._left -= ids.size
        text, has_ended = self._tokens.decode(ids)
        return self._add(self._held + text, "stop" if has_ended else "" if self._left else "length")

    def flush(self) -> str:
        """Ends the text where its tokens end, and returns what was held back."""
        return "" if self.finished else self._add(self._held, "length")

    def _add(self, text: str, reason: str) -> str:
        """Adds a text, which is the last one if there is a reason to end."""
        if reason:
            text += self._tokens.flush()
        if (end := _first_stop(text, self._controls.stop)) is not None:
            text, reason = text[:end], "stop"
        elif not reason:
            end = len(text) - _num_held(text, self._controls.stop)
            text, self._held = text[:end], text[end:]
        shown, num_read = self._lines.read(text)
        self.num_tokens += num_read
        if self._lines.has_ended:
            reason = "stop"
        elif reason:
            shown += self._lines.flush()
        if reason:
            self.finished = reason
            self.num_tokens = self._tokens.count(self.num_tokens)
        return shown


def decode_texts(
    groups: Iterator[Iterator[Sampled]], start: Callable[[], TextEnd]
) -> Iterator[Text]:
    """The samples of all groups of `Sampler.run` as texts.

    A group ends with its last text.

    Args:
      groups: of samples.
      start: makes the `TextEnd` of the next text.
    """
    for chunks in groups:
        read: list[Sampled] = []
        ends: list[TextEnd] = []
        pieces: list[list[str]] = []
        for sampled in chunks:
            if not ends:
                ends = [start() for _ in sampled.ids]
                pieces = [[] for _ in ends]
            read.append(sampled)
            for end, written, ids in zip(ends, pieces, sampled.ids, strict=True):
                written.append(end.read(ids))
            if all(end.finished for end in ends):
                break
        whole: Sampled = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *read)
        for row, end in enumerate(ends):
            text = "".join(pieces[row]) + end.flush()
            tokens = np.s_[row, : end.num_tokens]
            logprobs = None if whole.logprobs is None else whole.logprobs[tokens]
            yield Text(text, end.finished, whole.ids[tokens], logprobs)


class _Tokens:
    """Decodes tokens, and counts how many of them a text has."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab, self._decoder = vocab, vocab.decoder()
        self._ids: list[Int[np.ndarray, " n"]] = []

    def decode(self, ids: Int[np.ndarray, " n"]) -> tuple[str, bool]:
        """(text of the next tokens, whether the sample ends among them).

        It ends at a document boundary, and where no token was left to sample.
        """
        is_end = ids < 0
        if self._vocab.boundary_id is not None:
            is_end |= ids == self._vocab.boundary_id
        ends = np.flatnonzero(is_end)
        ids = ids[: ends[0]] if ends.size else ids
        if self._vocab.unit == "byte":
            self._ids.append(ids)
        return self._decoder.decode(ids), bool(ends.size)

    def flush(self) -> str:
        return self._decoder.flush()

    def count(self, length: int) -> int:
        """How many tokens the first `length` characters of the decoded text have."""
        if self._vocab.unit == "codepoint":
            return length
        decoder, decoded = self._vocab.decoder(), 0
        ids = np.concatenate([*self._ids, np.empty(0, np.int32)]).astype(np.int32)
        for number in range(len(ids)):
            if decoded >= length:
                return number
            decoded += len(decoder.decode(ids[number : number + 1]))
            if decoded > length:  # it also showed that the bytes before it are invalid
                return number
        return len(ids)


class Lines:
    """Counts the lines of a text, and leaves out those that `unique` or `new` do not accept."""

    def __init__(self, controls: Controls, known: Container[str] = (), prompt: str = "") -> None:
        """Starts a text; the arguments are those of `TextEnd`."""
        self._controls, self._known = controls, known
        *written, self._start = prompt.split("\n")
        self._written, self._line = set(written), ""
        self._left = controls.until_lines or math.inf

    @property
    def has_ended(self) -> bool:
        """Whether the text has its `until_lines`."""
        return not self._left

    def accepts(self, line: str) -> bool:
        """Whether a line stays; if so, it counts as written."""
        if self._controls.new and line in self._known:
            return False
        if not self._controls.unique:
            return True
        is_first = line not in self._written
        self._written.add(line)
        return is_first

    def read(self, text: str) -> tuple[str, int]:
        """(what stays of the text, how many of its characters were read)."""
        shown, num_read = "", 0
        *lines, rest = text.split("\n")
        for line in lines:
            num_read += len(line) + 1
            if self.accepts(self._start + self._line + line):
                shown += f"{self._line}{line}\n"
                self._left -= 1
            self._start = self._line = ""
            if self.has_ended:
                return shown, num_read
        if self._controls.selects_lines:  # until it is whole
            self._line += rest
            return shown, len(text)
        return shown + rest, len(text)

    def flush(self) -> str:
        """The last line, which has no newline, if it was held back and stays."""
        line, self._line = self._line, ""
        return line if line and self.accepts(self._start + line) else ""


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop text begins that is complete first, so that the chunks do not matter."""
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def _num_held(text: str, stops: Sequence[str]) -> int:
    """The length of the longest end of the text with which a stop text may begin."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    lengths = range(min(longest, len(text)), 0, -1)
    return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in stops)), 0)
