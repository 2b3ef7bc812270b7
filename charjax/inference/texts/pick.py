"""The likeliest next words of a text, for a person to choose from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from jaxtyping import Int

from charjax.errors import InputError
from charjax.inference.options import Sampling
from charjax.inference.texts.end import TextEnd
from charjax.inference.texts.prompt import Prompt
from charjax.inference.texts.sampler import TextSampler

_MAX_WORD = 30  # characters
_MAX_WORDS = 20


def pick_text(
    sampler: TextSampler,
    prompt: Prompt,
    k: int,
    ask: Callable[[Sequence[str], str], str],
    *,
    unknown: str,
) -> Iterator[str]:
    """The text after a prompt that a person chooses, after each word; as the model reads it.

    Args:
      sampler: of the model.
      prompt: what the text continues.
      k: how many words there are to choose from.
      ask: returns the text to add, from the words and the problem of the text before it, which
        was not added; "" ends the text.
      unknown: as for `Vocab.encode`.

    Raises:
      InputError: `k` is out of range.
    """
    start = text = prompt.text(sampler.vocab)
    problem = ""
    while added := ask(likeliest_words(sampler, prompt, k), problem):
        try:
            prompt = sampler.encode(text + added, unknown)
        except InputError as error:  # does not lose the text so far
            problem = str(error)
        else:
            text, problem = prompt.text(sampler.vocab), ""
            yield text[len(start) :]


def likeliest_words(sampler: TextSampler, prompt: Prompt, k: int) -> list[str]:
    """Words that may come next: each of the k likeliest characters, continued greedily.

    A word ends with the first space or line end after its first character. Bytes that are not
    valid UTF-8 begin no word.

    Args:
      sampler: of the model.
      prompt: the text so far.
      k: how many words.

    Raises:
      InputError: `k` is out of range.
    """
    if not 1 <= k <= _MAX_WORDS:
        raise InputError(f"--pick={k}: must be from 1 to {_MAX_WORDS}")
    vocab, greedy = sampler.vocab, replace(sampler.sampling, temperature=0.0)
    ids = prompt.ids
    (group,) = sampler.samples(ids, num_chars=1, num_samples=1, sampling=greedy, num_top=len(vocab))
    *_, first = group
    forbidden = sampler.forbidden_after(ids)
    characters = [
        token
        for token in np.asarray(first.top_ids)[0, 0].tolist()
        if token < len(vocab.characters) and token not in forbidden
    ]
    words = (_word(sampler, np.append(ids, np.int32(token)), greedy) for token in characters)
    return list(islice(filter(None, words), k))


def _word(sampler: TextSampler, ids: Int[np.ndarray, " n"], greedy: Sampling) -> str:
    """The last token, and what follows it up to the end of the word.

    Of a model of bytes it ends before the first invalid UTF-8, which cannot be read again.
    """
    end = TextEnd(sampler.vocab, _MAX_WORD + 1)
    word = end.read(ids[-1:])
    (group,) = sampler.samples(ids, num_chars=_MAX_WORD, num_samples=1, sampling=greedy)
    for sampled in group:
        word += end.read(sampled.ids[0])
    word += end.flush()
    if sampler.vocab.unit == "byte":
        word = word.partition("\ufffd")[0]
    found = re.search(r"\s", word[1:])
    return word[: found.end() + 1] if found else word
