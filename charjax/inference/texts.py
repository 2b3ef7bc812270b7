"""Texts from a model: prompts encoded, samples decoded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from charjax.config import ModelConfig
from charjax.data.vocab import Vocab
from charjax.inference.load import TrainedModel
from charjax.inference.sampler import Chunks, sample
from charjax.inference.sampling import Sampling
from charjax.types import PyTree


def sample_texts(
    config: ModelConfig,
    params: PyTree,
    vocab: Vocab,
    prompt: str,
    *,
    num_chars: int,
    num_samples: int,
    sampling: Sampling,
) -> Iterator[str]:
    """The continuations of a prompt, without the prompt; see `charjax.inference.sampler`.

    Raises:
      InputError: the prompt has characters outside the vocabulary.
    """
    groups = sample(
        config,
        params,
        encode_prompt(vocab, prompt),
        num_chars=num_chars,
        num_samples=num_samples,
        sampling=sampling,
        masked=vocab.unk_id,
    )
    return decode_groups(vocab, groups)


def write_texts(
    trained: TrainedModel,
    prompt: str,
    *,
    num_chars: int,
    num_samples: int,
    separator: str,
    sampling: Sampling,
    unknown: str,
) -> Iterator[str]:
    """The output of `charjax sample` in pieces: prompts, continuations and separators.

    A single text is streamed as it is sampled; of several, each comes whole.

    Raises:
      InputError: the prompt has characters outside the vocabulary, or a number is out of range.
    """
    vocab = trained.vocab
    ids = encode_prompt(vocab, prompt, unknown=unknown)
    shown = vocab.decode(ids) if prompt else ""
    groups = sample(
        trained.config.model,
        trained.params,
        ids,
        num_chars=num_chars,
        num_samples=num_samples,
        sampling=sampling,
        masked=vocab.unk_id,
    )
    if num_samples == 1:
        decoder = vocab.decoder()
        chunks = next(groups)
        yield shown
        yield from (decoder.decode(chunk[0]) for chunk in chunks)
        yield decoder.flush()
        return
    for number, text in enumerate(decode_groups(vocab, groups)):
        yield (separator if number else "") + shown + text


def decode_groups(vocab: Vocab, groups: Iterator[Chunks]) -> Iterator[str]:
    """The samples of all groups, which a `Sampler` yields, as whole texts."""
    for chunks in groups:
        yield from map(vocab.decode, np.concatenate(list(chunks), axis=1))


def encode_prompt(
    vocab: Vocab, prompt: str, *, unknown: str = "error"
) -> Int[np.ndarray, " prompt"]:
    """The ids of a prompt; those of an empty one are the vocabulary's start token.

    Raises:
      InputError: it has characters outside the vocabulary, unless `unknown` is "unk".
    """
    ids = vocab.encode(prompt, unknown=unknown)
    return ids if ids.size else np.array([vocab.start], np.int32)
