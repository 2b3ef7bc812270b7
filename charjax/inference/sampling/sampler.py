"""Sampling: continuations of a prompt, by one jitted `lax.scan` over the carry.

Sample i of a seed is the same text whatever the number of samples, and however the text is cut
into chunks: its random numbers are a function of (seed, sample, position), and samples run in
groups whose sizes are fixed in advance, so that the rounding of the matmuls does not depend on
how many samples are asked for. Packed matmuls are batch-invariant, and so is the persistent
kernel: they give each sequence the same bits in a batch of any size. With them, a group has any
size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int

from charjax.config import ModelConfig
from charjax.data.tokens.ids import as_ids, check_ids, check_special
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.inference.options import MAX_CHARS, Sampling, check_num_samples
from charjax.inference.sampling.copying import CopyTable
from charjax.inference.sampling.groups import (
    MAX_PERSISTENT_GROUP,
    GroupFormat,
    chunk_length,
    group_format,
    has_persistent_loop,
    sample_groups,
    weights_in_format,
)
from charjax.inference.sampling.loop import Program, compiled_loop
from charjax.inference.sampling.row_options import row_options
from charjax.inference.sampling.rows import Sampled, Starts, start_rows
from charjax.model.decode_weights import DecodeWeights
from charjax.model.shapes import check_params
from charjax.runtime.compiler_options import check_concrete
from charjax.runtime.dtypes import check_resolved
from charjax.schema import check_integer
from charjax.types import PyTree

PromptIds: TypeAlias = Int[np.ndarray, " prompt"] | Sequence[int]
# Token ids of the samples of one group, chunk by chunk.
Chunks = Iterator[Int[np.ndarray, "samples chunk"]]


class Sampler:
    """A model that can be sampled any number of times.

    Its weights are rearranged once for each `GroupFormat`.

    Attributes:
      config: the architecture.
      vocab_size: tokens of the model.
      row_options: `charjax.inference.sampling.row_options.row_options` for this model.
    """

    def __init__(
        self, config: ModelConfig, params: PyTree, *, masked: int | None, exempt: int | None = None
    ) -> None:
        """Takes a model; its weights are rearranged when a group first needs them.

        Args:
          config: the architecture.
          params: of a `CharRNN`.
          masked: a token never to sample, the vocabulary's [UNK]; None: all may be.
          exempt: a token without repetition penalty, the document boundary; None: all have it.

        Raises:
          InputError: config.dtype is "auto", the parameters are those of another config, this is
            called within `jax.jit`, or a token is outside the vocabulary.
        """
        check_resolved(config)
        check_concrete(params)
        self.config, self.vocab_size = config, check_params(config, params)
        self._masked = masked
        self.row_options = partial(
            row_options, vocab_size=self.vocab_size, masked=masked, exempt=exempt
        )
        check_special(self.vocab_size, masked, exempt)
        self._weights: Callable[[GroupFormat, int | None], DecodeWeights] = cache(
            lambda group_format, masked: weights_in_format(config, masked, group_format, params)
        )

    @classmethod
    def for_vocab(cls, config: ModelConfig, params: PyTree, vocab: Vocab) -> Sampler:
        """A model with a vocabulary: its [UNK] is masked, its document boundary exempt."""
        return cls(config, params, masked=vocab.unk_id, exempt=vocab.boundary_id)

    def __call__(
        self,
        prompt: PromptIds,
        *,
        num_chars: int,
        num_samples: int,
        sampling: Sampling,
    ) -> Iterator[Chunks]:
        """Continues a prompt.

        Args:
          prompt: ids to read first, at least one; not part of the result.
          num_chars: characters of each sample.
          num_samples: how many samples.
          sampling: how tokens are chosen.

        Yields:
          One iterator per group of samples, in order. It yields the group's ids, int32, chunk
          by chunk as they are sampled, and at least one chunk, which may be empty.

        Raises:
          InputError: an empty prompt, an id outside the vocabulary, or a number out of range.
        """
        groups = self.run(prompt, num_chars=num_chars, num_samples=num_samples, sampling=sampling)
        return ((sampled.ids for sampled in group) for group in groups)

    def run(
        self,
        prompt: PromptIds,
        *,
        num_chars: int,
        num_samples: int,
        sampling: Sampling,
        num_top: int | None = None,
        copies: CopyTable | None = None,
    ) -> Iterator[Iterator[Sampled]]:
        """Continues a prompt, as a call does, with log-probabilities beside the ids.

        Args:
          prompt: ids to read first, at least one; not part of the result.
          num_chars: characters of each sample.
          num_samples: how many samples.
          sampling: how tokens are chosen.
          num_top: how many of the likeliest tokens to return with their log-probabilities, beside
            the chosen one; None: no log-probabilities.
          copies: forbids tokens that would complete a copied passage; None: off. Where it leaves no
            token, the id is -1, and those after it mean nothing.
        """
        prompt = as_prompt(prompt, self.vocab_size)
        num_chars = check_integer("--num_chars", num_chars, 0, MAX_CHARS)
        num_samples = check_num_samples(num_samples)
        program = self.program(sampling, num_samples, num_top, copies)
        request = _Request(program, prompt, num_chars, num_samples, sampling, copies)
        for first, size in sample_groups(self.config, num_samples, persistent=program.persistent):
            yield _read_behind(self._dispatches(request, first, size), int(program.persistent))

    def program(
        self, sampling: Sampling, num_samples: int, num_top: int | None, copies: CopyTable | None
    ) -> Program:
        """What the loop is compiled for, with the arguments of `run`; errors as there."""
        is_simple = self.row_options([sampling]).only_add and num_top is None and copies is None
        largest = min(num_samples, MAX_PERSISTENT_GROUP)
        persistent = is_simple and has_persistent_loop(self.config, self.vocab_size, largest)
        return Program(self.config, num_top, persistent)

    def weights(self, size: int, num_top: int | None) -> DecodeWeights:
        """The weights for a batch of a size.

        Where log-probabilities are wanted, the masked token has its logit; see `row_options`.
        """
        masked = self._masked if num_top is None else None
        return self._weights(group_format(self.config, self.vocab_size, size), masked)

    def _dispatches(
        self, request: _Request, first: int, size: int
    ) -> Iterator[tuple[Sampled, Any]]:
        """The samples of one group, chunk by chunk, and which of their tokens are wanted.

        The same compiled loop reads the prompt, whose tokens are forced instead of sampled.
        """
        program, prompt, num_chars, num_samples, sampling, copies = request
        weights = self.weights(size, program.num_top)
        options = self.row_options([sampling] * size, num_top=program.num_top)
        starts = Starts(
            np.full(size, sampling.seed, np.uint32),
            np.arange(first, first + size, dtype=np.int32),
            np.full(size, prompt[0], np.int32),
            np.full(size, -prompt.size, np.int32),
        )
        rows = start_rows(
            self.config,
            weights,
            starts,
            penalty=options.penalty is not None,
            max_copy=copies.length if copies else 0,
        )
        chunk = chunk_length(size, self.vocab_size, persistent=program.persistent)
        wanted = min(size, num_samples - first)
        for start in range(1 - prompt.size, max(1, num_chars), chunk):
            positions = start + np.arange(chunk)
            # The last token of the prompt has position -1. A forced token of -1: sample.
            forced = np.where(positions < 0, prompt[np.minimum(positions, -1)], -1)
            forced = np.repeat(forced.astype(np.int32)[:, None], size, axis=1)
            rows, sampled = compiled_loop()(program, weights, rows, forced, options, copies)
            yield sampled, np.s_[:wanted, (positions >= 0) & (positions < num_chars)]


def sample(
    config: ModelConfig,
    params: PyTree,
    prompt: PromptIds,
    *,
    num_chars: int,
    num_samples: int,
    sampling: Sampling,
    masked: int | None,
) -> Iterator[Chunks]:
    """Continues a prompt once; see `Sampler`."""
    return Sampler(config, params, masked=masked)(
        prompt, num_chars=num_chars, num_samples=num_samples, sampling=sampling
    )


def as_prompt(ids: PromptIds, vocab_size: int) -> Int[np.ndarray, " prompt"]:
    """The int32 ids of a prompt; raises InputError for ids that cannot be continued."""
    prompt = as_ids(ids)
    if prompt.size == 0:
        raise InputError("the prompt is empty: the sampler needs a token to start from")
    check_ids(prompt, vocab_size)
    return prompt.astype(np.int32)  # others, such as the bytes of a text in memory, have no -1


class _Request(NamedTuple):
    """The arguments of `Sampler.run`, and what its loop is compiled for."""

    program: Program
    prompt: Int[np.ndarray, " prompt"]
    num_chars: int
    num_samples: int
    sampling: Sampling
    copies: CopyTable | None


def _read_behind(dispatches: Iterator[tuple[Sampled, Any]], ahead: int) -> Iterator[Sampled]:
    """What is wanted of each dispatch, read while the device runs `ahead` further ones."""
    running: deque[tuple[Sampled, Any]] = deque()
    for dispatch in dispatches:
        running.append(dispatch)
        if len(running) > ahead:
            sampled, wanted = running.popleft()
            yield sampled.on_host(wanted)
    for sampled, wanted in running:
        yield sampled.on_host(wanted)
