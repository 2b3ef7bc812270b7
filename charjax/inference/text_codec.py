"""Encoded prompts, and samples decoded to texts up to where each ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from charjax.data.vocab import Vocab
from charjax.inference.sampling_rows import Sampled
from charjax.inference.text_end import TextEnd


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
