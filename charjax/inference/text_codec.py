"""Encoded prompts, and samples decoded to texts up to where each ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from charjax.data.vocab import Vocab
from charjax.inference.controls import Controls
from charjax.inference.sampler import Chunks
from charjax.inference.sampling_rows import Sampled
from charjax.inference.text_end import TextEnd

_MAX_TOKENS = 2**31  # of a text that ends with its document

# Makes the `TextEnd` of the next text.
StartText = Callable[[], TextEnd]


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


def encode_prompt(
    vocab: Vocab, prompt: str, *, unknown: str = "error"
) -> Int[np.ndarray, " prompt"]:
    """The ids of a prompt, after the document boundary if the vocabulary has one.

    An empty prompt is the vocabulary's start token.

    Raises:
      InputError: it has characters outside the vocabulary, unless `unknown` is "unk".
    """
    ids = vocab.encode(prompt, unknown=unknown)
    if ids.size and not vocab.boundary:
        return ids
    return np.concatenate([np.array([vocab.start], np.int32), ids])


def decode_texts(groups: Iterator[Iterator[Sampled]], start: StartText) -> Iterator[Text]:
    """The samples of all groups of `Sampler.run` as texts; a group ends with its last text."""
    for chunks in groups:
        ends: list[TextEnd] = []
        pieces: list[list[str]] = []
        read: list[Sampled] = []
        for sampled in chunks:
            if not ends:
                ends = [start() for _ in sampled.ids]
                pieces = [[] for _ in ends]
            read.append(sampled)
            for row, end in enumerate(ends):
                pieces[row].append(end.read(sampled.ids[row]))
            if all(end.finished for end in ends):
                break
        for row, end in enumerate(ends):
            pieces[row].append(end.flush())
            ids = np.concatenate([sampled.ids[row] for sampled in read])[: end.num_tokens]
            yield Text("".join(pieces[row]), end.finished, ids, _logprobs(read, row, end))


def _logprobs(read: list[Sampled], row: int, end: TextEnd) -> Any:
    if read[0].logprobs is None:
        return None
    parts = [part.logprobs[row] for part in read if part.logprobs is not None]
    return np.concatenate(parts)[: end.num_tokens]


def decode_groups(vocab: Vocab, groups: Iterator[Chunks]) -> Iterator[str]:
    """The samples of all groups, which a `Sampler` yields, as whole texts.

    Each ends where the model predicts the end of a document.
    """
    sampled = ((Sampled(ids) for ids in chunks) for chunks in groups)
    texts = decode_texts(sampled, lambda: TextEnd(vocab, Controls(), _MAX_TOKENS))
    return (text.text for text in texts)
