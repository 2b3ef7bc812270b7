"""One text while it is written: tokens in, pieces of text with their log-probabilities out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from charjax.data.vocab import Vocab
from charjax.inference.options import Controls, Sampling
from charjax.inference.sampling.copying import CopyTable
from charjax.inference.sampling.rows import Sampled
from charjax.inference.texts.end import TextEnd
from charjax.inference.texts.prompt import Prompt
from charjax.serve.logprobs import LogprobList, TokenLogprob


class Writing(NamedTuple):
    """How texts are written; the same for all texts of a request.

    Attributes:
      vocab: of the model.
      sampling: how tokens are chosen.
      controls: where a text ends, and what it may hold.
      num_chars: tokens of a text at most.
      num_top: how many of the likeliest tokens to report; None: no log-probabilities.
      echo: whether the prompt is part of the text.
      copies: of the training text, for `controls.max_copy`; None: off.
    """

    vocab: Vocab
    sampling: Sampling
    controls: Controls
    num_chars: int
    num_top: int | None
    echo: bool
    copies: CopyTable | None = None

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt's tokens are asked for."""
        return self.echo and self.num_top is not None


class Delta(NamedTuple):
    """The next part of a text.

    Attributes:
      text: its characters.
      logprobs: of its tokens; empty if they were not asked for.
      finish_reason: "stop" or "length" with the last part; else None.
      num_tokens: of the whole text, with the last part.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    num_tokens: int = 0


class DeltaWriter:
    """Turns the tokens of one text, after those of its prompt, into deltas, up to its end."""

    def __init__(self, writing: Writing, prompt: Prompt) -> None:
        """Has read the first token of the prompt."""
        self._writing, self._prompt = writing, prompt
        self._position = 1 - prompt.ids.size  # of the next token; negative in the prompt
        self._logprobs = LogprobList(writing.vocab, writing.num_top)
        self._logprobs.extend(Sampled(prompt.ids[:1]))
        self._end: TextEnd | None = None  # once the prompt has been read
        self._released = self._taken = 0

    def read(self, tokens: Sampled, position: int) -> Delta:
        """The next piece; with a `finish_reason`, later tokens are not part of the text.

        Args:
          tokens: the next ones, of one row. Those that were read before are left out. Those of the
            prompt may be missing if their log-probabilities are not asked for.
          position: of the first one in the sample; negative in the prompt.
        """
        start = max(position, self._position)
        tokens = tokens.on_host(np.s_[start - position :])
        self._position = start + tokens.ids.size
        num_forced = max(0, -start)
        if self._writing.scores_prompt:
            self._logprobs.extend(tokens.on_host(np.s_[:num_forced]))
        if self._position < 0:
            return Delta("")
        echo, end = Delta(""), self._end
        if end is None:
            echo, end = self._finish_prompt()
        sampled = tokens.on_host(np.s_[num_forced:])
        text = end.read(sampled.ids)
        if sampled.logprobs is not None:
            self._logprobs.extend(sampled)
        self._released += len(text)
        logprobs = echo.logprobs + self._take(end)
        return Delta(echo.text + text, logprobs, end.finished or None, end.num_tokens)

    def _finish_prompt(self) -> tuple[Delta, TextEnd]:
        """The echo, and what decodes the text that follows."""
        writing, prompt = self._writing, self._prompt
        shown = prompt.text(writing.vocab) if writing.echo else ""
        entries = self._logprobs.entries[prompt.text_start :] if writing.scores_prompt else []
        self._released = len(shown)
        self._logprobs = LogprobList(writing.vocab, writing.num_top, len(shown))
        self._end = TextEnd(writing.vocab, writing.num_chars, writing.controls)
        return Delta(shown, tuple(entries)), self._end

    def _take(self, end: TextEnd) -> tuple[TokenLogprob, ...]:
        """The entries of the tokens whose text is released."""
        entries = self._logprobs.entries
        if end.finished:
            entries = entries[: end.num_tokens - self._taken]
        else:
            entries = [entry for entry in entries if entry.offset < self._released]
        del self._logprobs.entries[: len(entries)]
        self._taken += len(entries)
        return tuple(entries)
