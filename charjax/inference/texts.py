"""Writing text: continuations of a prompt, as ids or as texts.

Sample i of a seed is the same text however many samples are asked for and
however the text is cut into chunks (law 1); see `charjax.inference.sampler`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int

from charjax.config import ModelConfig
from charjax.data.vocab import Vocab, check_ids
from charjax.errors import InputError
from charjax.inference.load import TrainedModel
from charjax.inference.sampler import Form, form, groups, sampler_weights, write_group
from charjax.inference.sampling import Sampling
from charjax.model.decode import DecodeWeights
from charjax.types import PyTree

_MOST_CHARS = 10**9
_MOST_SAMPLES = 10**6


class Sampler:
    """A model made ready to write, any number of times.

    Its weights are rearranged once for every form in which groups read them, when the first
    such group is asked for: a short text costs less by the second one on.
    """

    def __init__(self, config: ModelConfig, params: PyTree, *, masked: int | None) -> None:
        """Takes a model.

        Args:
          config: the architecture.
          params: of a `CharRNN`.
          masked: an id never to write, the vocabulary's [UNK]; None: all may be written.
        """
        self._config, self._symbols = config, params["output_bias"].shape[0]
        self._weights: Callable[[Form], DecodeWeights] = functools.cache(
            lambda form: sampler_weights(config, masked, form, params)
        )

    def __call__(
        self,
        prompt: Int[np.ndarray, " prompt"],
        *,
        num_chars: int,
        num_samples: int,
        sampling: Sampling,
    ) -> Iterator[Iterator[Int[np.ndarray, "samples chunk"]]]:
        """Continues a prompt.

        Args:
          prompt: ids to read first, at least one; not part of the result.
          num_chars: how many characters to write.
          num_samples: how many continuations.
          sampling: how characters are chosen.

        Yields:
          One iterator a group of samples, in order. It yields the group's ids, int32, chunk
          by chunk as they are written, and at least one chunk, which may be empty.

        Raises:
          InputError: an empty prompt, one with an id that no symbol has, or a number out of
            range.
        """
        if prompt.size == 0:
            raise InputError("the prompt is empty: the sampler needs a symbol to start from")
        check_ids(prompt, self._symbols)
        if not 0 <= num_chars <= _MOST_CHARS:
            raise InputError(f"--num_chars={num_chars}: must be from 0 to {_MOST_CHARS:,}")
        if not 1 <= num_samples <= _MOST_SAMPLES:
            raise InputError(f"--num_samples={num_samples}: must be from 1 to {_MOST_SAMPLES:,}")
        config = self._config
        for first, size in groups(config, num_samples):
            numbers = range(first, min(first + size, num_samples))
            weights = self._weights(form(config, size))
            yield write_group(config, weights, prompt, num_chars, numbers, size, sampling)


def sample(
    config: ModelConfig,
    params: PyTree,
    prompt: Int[np.ndarray, " prompt"],
    *,
    num_chars: int,
    num_samples: int,
    sampling: Sampling,
    masked: int | None,
) -> Iterator[Iterator[Int[np.ndarray, "samples chunk"]]]:
    """Continues a prompt once: a `Sampler` made and called, which has what is given and raised."""
    return Sampler(config, params, masked=masked)(
        prompt, num_chars=num_chars, num_samples=num_samples, sampling=sampling
    )


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
    """The continuations of a prompt as whole texts, without it; see `sample`.

    Raises:
      InputError: the prompt has characters that the vocabulary lacks.
    """
    written = sample(
        config,
        params,
        encode_prompt(vocab, prompt),
        num_chars=num_chars,
        num_samples=num_samples,
        sampling=sampling,
        masked=vocab.unk_id,
    )
    return join_chunks(vocab, written)


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
    """The texts of `charjax sample`, in pieces as they are written: prompt and continuation.

    A single text comes as it is written; of several, each comes when it is whole.

    Raises:
      InputError: the prompt has characters that the vocabulary lacks, or a number is out
        of range.
    """
    vocab, model = trained.vocab, trained.config.model
    ids = encode_prompt(vocab, prompt, unknown=unknown)
    shown = vocab.decode(ids) if prompt else ""
    written = sample(
        model,
        trained.params,
        ids,
        num_chars=num_chars,
        num_samples=num_samples,
        sampling=sampling,
        masked=vocab.unk_id,
    )
    if num_samples == 1:
        decoder = vocab.decoder()
        chunks = next(written)
        yield shown
        yield from (decoder.decode(chunk[0]) for chunk in chunks)
        yield decoder.flush()
        return
    for number, text in enumerate(join_chunks(vocab, written)):
        yield (separator if number else "") + shown + text


def join_chunks(
    vocab: Vocab, groups: Iterator[Iterator[Int[np.ndarray, "samples chunk"]]]
) -> Iterator[str]:
    """The samples of all groups, which a `Sampler` yields, as whole texts."""
    for group in groups:
        yield from map(vocab.decode, np.concatenate(list(group), axis=1))


def encode_prompt(
    vocab: Vocab, prompt: str, *, unknown: str = "error"
) -> Int[np.ndarray, " prompt"]:
    """The ids of a prompt; an empty one becomes the vocabulary's start symbol.

    Raises:
      InputError: it has characters that the vocabulary lacks, unless `unknown` is "unk".
    """
    ids = vocab.encode(prompt, unknown=unknown)
    return ids if ids.size else np.array([vocab.start], np.int32)
