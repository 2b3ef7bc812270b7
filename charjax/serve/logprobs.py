"""Tokens as strings and with their log-probabilities, as the protocol's `logprobs` have them."""

from __future__ import annotations

from typing import NamedTuple

from charjax.data.vocab import Vocab
from charjax.inference.sampling.rows import Sampled

BOUNDARY = "<|endoftext|>"  # the document boundary as a string
_LEAST_LOGPROB = -9999.0  # what the protocol has for minus infinity, which JSON cannot hold


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


class LogprobList:
    """The entries of consecutive tokens, with the offsets of their text.

    Attributes:
      entries: those that were not yet taken.
    """

    def __init__(self, vocab: Vocab, num_top: int | None, offset: int = 0) -> None:
        """Starts a list.

        Args:
          vocab: of the model.
          num_top: how many of the likeliest tokens each entry has.
          offset: characters of the text before it.
        """
        self._vocab, self._num_top = vocab, num_top
        self._decoder, self._offset = vocab.decoder(), offset
        self.entries: list[TokenLogprob] = []

    def extend(self, tokens: Sampled) -> None:
        """Adds the entries of tokens; one without log-probabilities is the first of a text."""
        ids, logprobs, top_ids, top_logprobs = tokens
        for i, token in enumerate(ids.tolist()):
            if token < 0:  # none was left to sample: the text ends here
                return
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
