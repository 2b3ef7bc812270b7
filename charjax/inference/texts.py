"""Texts from a model: prompts encoded, samples decoded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from charjax.config import ModelConfig
from charjax.data.reading import prepare_prompt
from charjax.data.vocab import Vocab
from charjax.inference.load import TrainedModel
from charjax.inference.sampler import Chunks, Sampler
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
    ids, sampler = encode_prompt(vocab, prompt), Sampler(config, params, masked=vocab.unk_id)
    groups = sampler(ids, num_chars=num_chars, num_samples=num_samples, sampling=sampling)
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
    show_prompt: bool = True,
) -> Iterator[str]:
    """The output of `charjax sample` in pieces: prompts, continuations and separators.

    A single text is streamed as it is sampled; several are yielded one by one. A text ends
    after `num_chars` characters, or where the model predicts the end of a document.

    Raises:
      InputError: the prompt has characters outside the vocabulary, or a number is out of range.
    """
    vocab = trained.vocab
    prompt = prepare_prompt(prompt, trained.reading, vocab)
    ids = encode_prompt(vocab, prompt, unknown=unknown)
    shown = vocab.decode(ids) if prompt and show_prompt else ""
    sampler = Sampler(trained.config.model, trained.params, masked=vocab.unk_id)
    groups = sampler(ids, num_chars=num_chars, num_samples=num_samples, sampling=sampling)
    if num_samples == 1:
        yield shown
        yield from _stream(vocab, next(groups))
        return
    for number, text in enumerate(decode_groups(vocab, groups)):
        yield (separator if number else "") + shown + text


def _stream(vocab: Vocab, chunks: Chunks) -> Iterator[str]:
    """The text of the only sample of a group, in pieces."""
    decoder = vocab.decoder()
    for (row,) in chunks:
        yield decoder.decode(_document(vocab, row))
        if vocab.boundary_id in row:
            break
    yield decoder.flush()


def decode_groups(vocab: Vocab, groups: Iterator[Chunks]) -> Iterator[str]:
    """The samples of all groups, which a `Sampler` yields, as whole texts.

    Each ends where the model predicts the end of a document.
    """
    for chunks in groups:
        rows = np.concatenate(list(_until_all_end(vocab, chunks)), axis=1)
        yield from (vocab.decode(_document(vocab, row)) for row in rows)


def _until_all_end(vocab: Vocab, chunks: Chunks) -> Chunks:
    """The chunks of a group up to the one in which the last of its documents ends."""
    ended: np.bool_ | np.ndarray = np.False_
    for chunk in chunks:
        yield chunk
        if vocab.boundary_id is not None:
            ended = ended | (chunk == vocab.boundary_id).any(axis=1)
            if np.all(ended):
                return


def _document(vocab: Vocab, ids: Int[np.ndarray, " n"]) -> Int[np.ndarray, " document"]:
    """The ids before the first document boundary."""
    if vocab.boundary_id is None:
        return ids
    ends = np.flatnonzero(ids == vocab.boundary_id)
    return ids[: ends[0]] if ends.size else ids


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
