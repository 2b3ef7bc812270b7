"""One text while it is written: token ids in, pieces of text with their log-probabilities out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from charjax.data.vocab import Vocab
from charjax.inference.text_end import TextEnd

BOUNDARY = "<|endoftext|>"  # the document boundary as a string
_LEAST_LOGPROB = -9999.0  # what the protocol has for minus infinity, which JSON cannot hold


class TopTokens(NamedTuple):
    """The likeliest tokens at each position, the likeliest first.

    Attributes:
      ids: of the tokens.
      logprobs: their log-probabilities in nats.
    """

    ids: Int[np.ndarray, "time top"]
    logprobs: Float[np.ndarray, "time top"]


class TokenChunk(NamedTuple):
    """Consecutive tokens of one text.

    Attributes:
      ids: the tokens.
      logprobs: their log-probabilities in nats, before any sampling control; None: not asked for.
      top: the likeliest tokens at their positions; None: not asked for.
    """

    ids: Int[np.ndarray, " time"]
    logprobs: Float[np.ndarray, " time"] | None = None
    top: TopTokens | None = None

    def part(self, start: int, stop: int) -> TokenChunk:
        """The tokens from position `start` up to `stop`."""
        at = slice(start, stop)
        if self.logprobs is None or self.top is None:
            return TokenChunk(self.ids[at])
        top = TopTokens(self.top.ids[at], self.top.logprobs[at])
        return TokenChunk(self.ids[at], self.logprobs[at], top)


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
    """Turns the tokens of one text into deltas, up to its end."""

    def __init__(self, vocab: Vocab, end: TextEnd, offset: int = 0) -> None:
        """Takes the text's end, and the offset of its first character for the log-probabilities."""
        self._end, self._released, self._taken = end, offset, 0
        self._list = LogprobList(vocab, offset)

    def write(self, tokens: TokenChunk) -> Delta:
        """The next piece; with a `finish_reason`, later tokens are not part of the text."""
        text = self._end.read(tokens.ids)
        if tokens.logprobs is not None:
            self._list.extend(tokens)
        self._released += len(text)
        return Delta(text, self._take(), self._end.finished or None, self._end.num_tokens)

    def _take(self) -> tuple[TokenLogprob, ...]:
        """The entries of the tokens whose text is released."""
        entries = self._list.entries
        if self._end.finished:
            entries = entries[: self._end.num_tokens - self._taken]
        else:
            entries = [entry for entry in entries if entry.offset < self._released]
        del self._list.entries[: len(entries)]
        self._taken += len(entries)
        return tuple(entries)


class LogprobList:
    """The entries of consecutive tokens, with the offsets of their text.

    Attributes:
      entries: those that were not yet taken.
    """

    def __init__(self, vocab: Vocab, offset: int = 0) -> None:
        self._vocab, self._decoder, self._offset = vocab, vocab.decoder(), offset
        self.entries: list[TokenLogprob] = []

    def extend(self, tokens: TokenChunk) -> None:
        """Adds the entries of tokens; one without log-probabilities is the first of a text."""
        ids, logprobs, top = tokens
        for i, token in enumerate(ids.tolist()):
            string, text = token_string(self._vocab, token), self._decoder.decode(ids[i : i + 1])
            self._offset += len(text)
            is_last = text and not self._decoder.has_part  # token of a character
            offset = self._offset - 1 if is_last else self._offset
            if logprobs is None or top is None:
                self.entries.append(TokenLogprob(string, None, None, offset))
                continue
            pairs = zip(top.ids[i].tolist(), top.logprobs[i].tolist(), strict=True)
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
