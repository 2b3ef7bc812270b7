"""One text while it is written: token ids in, pieces of text with their log-probabilities out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from charjax.data.vocab import Vocab
from charjax.inference.copying import CopyTable
from charjax.inference.prompt import Prompt
from charjax.inference.sampling_options import Controls, Sampling
from charjax.inference.sampling_rows import Sampled
from charjax.inference.text_end import TextEnd

BOUNDARY = "<|endoftext|>"  # the document boundary as a string
_LEAST_LOGPROB = -9999.0  # what the protocol has for minus infinity, which JSON cannot hold


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


class TokenLogprob(NamedTuple):
    """One token in the protocol's `logprobs`.

    Attributes:
      token: as a string, see `token_string`.
      logprob: in nats; None: nothing precedes the token.
      top: log-probabilities of the likeliest tokens and of this one, by string; None as above.
      offset: characters of the text before the one that it is part of.
    """

    token: str
    logprob: float | None
    top: dict[str, float] | None
    offset: int


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
        self._logprobs = LogprobList(writing)
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
        self._released, self._logprobs = len(shown), LogprobList(writing, len(shown))
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


class LogprobList:
    """The entries of consecutive tokens, with the offsets of their text.

    Attributes:
      entries: those that were not yet taken.
    """

    def __init__(self, writing: Writing, offset: int = 0) -> None:
        self._vocab, self._num_top = writing.vocab, writing.num_top
        self._decoder, self._offset = writing.vocab.decoder(), offset
        self.entries: list[TokenLogprob] = []

    def extend(self, tokens: Sampled) -> None:
        """Adds the entries of tokens; one without log-probabilities is the first of a text."""
        ids, logprobs, top_ids, top_logprobs = tokens
        for i, token in enumerate(ids.tolist()):
            string, text = token_string(self._vocab, token), self._decoder.decode(ids[i : i + 1])
            self._offset += len(text)
            is_last = text and not self._decoder.has_part  # token of a character
            offset = self._offset - 1 if is_last else self._offset
            if logprobs is None or top_ids is None or top_logprobs is None:
                self.entries.append(TokenLogprob(string, None, None, offset))
                continue
            top = (leaf[i, : self._num_top].tolist() for leaf in (top_ids, top_logprobs))
            pairs = zip(*top, strict=True)
            likeliest = {token_string(self._vocab, t): max(v, _LEAST_LOGPROB) for t, v in pairs}
            logprob = max(float(logprobs[i]), _LEAST_LOGPROB)
            self.entries.append(
                TokenLogprob(string, logprob, likeliest | {string: logprob}, offset)
            )


def token_string(vocab: Vocab, token: int) -> str:
    r"""A token as a string: its character; `bytes:\xe2` for a byte that is not one.

    The document boundary is `BOUNDARY`, [UNK] is U+FFFD.
    """
    if token == vocab.boundary_id:
        return BOUNDARY
    if token == vocab.unk_id:
        return "\ufffd"
    character = vocab.characters[token]
    if vocab.unit == "byte" and character > "\x7f":
        return f"bytes:\\x{ord(character):02x}"
    return character
