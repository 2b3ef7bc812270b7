"""Sampling: continuations of a prompt, by one jitted `lax.scan` over the carry.

Sample i of a seed is the same text whatever the number of samples, and however the text is cut
into chunks: its random numbers are a function of (seed, sample, position), and samples run in
groups whose sizes are fixed in advance, so that the rounding of the matmuls does not depend on
how many samples are asked for. Packed matmuls are batch-invariant, and so is the persistent
kernel: they give each sequence the same bits in a batch of any size. With them, a group has any
size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from charjax.config import ModelConfig
from charjax.data.vocab import check_ids
from charjax.errors import InputError
from charjax.inference.copying import CopyTable
from charjax.inference.groups import (
    MAX_PERSISTENT_GROUP,
    GroupFormat,
    group_format,
    sample_groups,
    weights_in_format,
)
from charjax.inference.row_controls import Enabled, RowControls, row_controls
from charjax.inference.sampling import Sampling
from charjax.inference.sampling_loop import compiled_loop
from charjax.inference.sampling_program import Program
from charjax.inference.sampling_rows import Given, Sampled, Starts, start_rows
from charjax.model.decode_weights import DecodeWeights
from charjax.runtime.compiler_options import check_concrete
from charjax.runtime.dtypes import check_resolved
from charjax.schema import check_integer
from charjax.types import PyTree

_MAX_CHARS = 10**9
MAX_SAMPLES = 10**6
_CHUNK, _PERSISTENT_CHUNK = 256, 1024  # characters in one dispatch, unless their noise exceeds
_MAX_NOISE = 1 << 23  # numbers drawn ahead of the scan

# Token ids of the samples of one group, chunk by chunk.
Chunks = Iterator[Int[np.ndarray, "samples chunk"]]


class Sampler:
    """A model that can be sampled any number of times.

    Its weights are rearranged once for each `GroupFormat`.

    Attributes:
      config: the architecture.
      vocab_size: tokens of the model.
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
          InputError: config.dtype is "auto", this is called within `jax.jit`, or a token is outside
            the vocabulary.
        """
        check_resolved(config)
        check_concrete(params)
        self.config, self.vocab_size = config, params["output_bias"].shape[0]
        self._masked, self._exempt = masked, exempt
        given = [token for token in (masked, exempt) if token is not None]
        check_ids(np.array(given or [0]), self.vocab_size)
        self._weights: Callable[[GroupFormat, int | None], DecodeWeights] = functools.cache(
            lambda group_format, masked: weights_in_format(config, masked, group_format, params)
        )

    def __call__(
        self,
        prompt: Int[np.ndarray, " prompt"],
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
        prompt: Int[np.ndarray, " prompt"],
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
        check_prompt(prompt, self.vocab_size)
        check_integer("--num_chars", num_chars)
        if not 0 <= num_chars <= _MAX_CHARS:
            raise InputError(f"--num_chars={num_chars}: must be from 0 to {_MAX_CHARS:,}")
        check_num_samples(num_samples)
        enabled = Enabled.for_rows([sampling], num_top)
        program = Program(self.config, enabled, copies.length if copies else 0)
        largest = min(num_samples, MAX_PERSISTENT_GROUP)
        is_persistent = program.is_persistent(self.vocab_size, largest)
        for first, size in sample_groups(self.config, num_samples, persistent=is_persistent):
            weights = self.weights(size, program.enabled)
            controls = self.row_controls([sampling] * size)
            starts = _group_starts(sampling.seed, first, size, prompt)
            wanted = min(size, num_samples - first)
            group = _Group(program, weights, controls, starts, wanted, copies)
            yield _sample_group(group, prompt, num_chars)

    def weights(self, size: int, enabled: Enabled) -> DecodeWeights:
        """The weights for a batch of a size.

        Where log-probabilities are wanted, or a bias is on, the masked token has its logit, and
        is forbidden by `row_controls`.
        """
        masked = None if enabled.has_bias else self._masked
        return self._weights(group_format(self.config, self.vocab_size, size), masked)

    def row_controls(self, rows: Sequence[Sampling]) -> RowControls:
        """The controls of the rows of a batch; see `charjax.inference.row_controls`."""
        return row_controls(rows, self.vocab_size, masked=self._masked, exempt=self._exempt)


def sample(
    config: ModelConfig,
    params: PyTree,
    prompt: Int[np.ndarray, " prompt"],
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


def check_prompt(prompt: Int[np.ndarray, " prompt"], vocab_size: int) -> None:
    """Raises InputError for ids that cannot be continued."""
    if prompt.ndim != 1:
        raise InputError(f"a prompt of shape {prompt.shape}: give the ids of one text, [prompt]")
    if prompt.size == 0:
        raise InputError("the prompt is empty: the sampler needs a token to start from")
    check_ids(prompt, vocab_size)


def check_num_samples(num_samples: int) -> None:
    """Raises InputError for a number of samples that is out of range, or no integer."""
    check_integer("--num_samples", num_samples)
    if not 1 <= num_samples <= MAX_SAMPLES:
        raise InputError(f"--num_samples={num_samples}: must be from 1 to {MAX_SAMPLES:,}")


class _Group(NamedTuple):
    """Samples that run side by side.

    Attributes:
      program: what their loop is compiled for.
      weights: of the model, in the group's format.
      controls: of each of its rows.
      starts: of each of its rows.
      wanted: how many of the samples were asked for.
      copies: as for `Sampler.run`.
    """

    program: Program
    weights: DecodeWeights
    controls: RowControls
    starts: Starts
    wanted: int
    copies: CopyTable | None


def _group_starts(seed: int, first: int, size: int, prompt: Int[np.ndarray, " prompt"]) -> Starts:
    """The starts of samples `first`, `first` + 1, ... of a seed."""
    numbers = np.arange(first, first + size, dtype=np.int32)
    tokens, positions = (np.full(size, value, np.int32) for value in (prompt[0], -prompt.size))
    return Starts(np.full(size, seed, np.uint32), numbers, tokens, positions)


def _sample_group(
    group: _Group, prompt: Int[np.ndarray, " prompt"], num_chars: int
) -> Iterator[Sampled]:
    """The samples of one group, in chunks; the first chunk is empty.

    The same compiled loop reads the prompt, whose tokens are forced instead of sampled.
    """
    size, vocab_size = len(group.starts.tokens), group.weights.vocab_size
    keys, loop = start_rows(group.program, group.weights, group.starts)
    is_persistent = group.program.is_persistent(vocab_size, size)
    chunk = _PERSISTENT_CHUNK if is_persistent else _CHUNK
    chunk = max(1, min(chunk, _MAX_NOISE // (size * vocab_size)))
    ahead = int(is_persistent)  # chunks that the GPU runs while an earlier one is read
    running: list[tuple[Sampled, Any]] = []
    num_forced = prompt.size - 1
    yield _empty(group)  # so that a text of no characters has a chunk, too
    for start in range(0, num_forced + num_chars, chunk):
        forced = np.full(chunk, -1, np.int32)  # -1: sample
        read = prompt[1 + start : 1 + start + chunk]
        forced[: read.size] = read
        positions = start - num_forced + np.arange(chunk, dtype=np.int32)
        given = Given(*(np.repeat(values[:, None], size, axis=1) for values in (forced, positions)))
        loop, sampled = compiled_loop()(
            group.program, group.weights, loop, given, keys, group.controls, group.copies
        )
        kept = (positions >= 0) & (positions < num_chars)
        if kept.any():
            running.append((sampled, np.s_[: group.wanted, kept]))
        if len(running) > ahead:
            yield _read(running.pop(0))
    yield from map(_read, running)


def _read(chunk: tuple[Sampled, Any]) -> Sampled:
    sampled, selected = chunk
    return sampled.on_host(selected)


def _empty(group: _Group) -> Sampled:
    ids, logprobs = (np.empty((group.wanted, 0), dtype) for dtype in (np.int32, np.float32))
    num_top = group.program.enabled.num_top
    if num_top is None:
        return Sampled(ids)
    num_top = min(num_top, group.weights.vocab_size)
    return Sampled(
        ids, logprobs, *(np.repeat(empty[..., None], num_top, axis=2) for empty in (ids, logprobs))
    )
