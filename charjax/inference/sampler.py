"""Sampling: continuations of a prompt, by one jitted `lax.scan` over the carry.

Sample i of a seed is the same text whatever the number of samples, and however the text is cut
into chunks: its random numbers are a function of (seed, sample, position), and samples run in
groups whose sizes are fixed in advance, so that the rounding of the matmuls does not depend on
how many samples are asked for. Packed and int8 matmuls are batch-invariant: they give each
sequence the same bits in a batch of any size. With them, a group has any size.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from charjax.config import ModelConfig
from charjax.data.vocab import check_ids
from charjax.errors import InputError
from charjax.inference.sampling import (
    MAX_TEMPERATURE,
    Sampling,
    gumbel_noise,
    mask_below_top_k,
    sample_with_noise,
)
from charjax.model.carry import initial_carry
from charjax.model.decode import (
    DecodeState,
    DecodeWeights,
    Layout,
    decode_state,
    decode_step,
    decode_weights,
    mask_token,
)
from charjax.model.recurrence.api import resolve
from charjax.model.recurrence.c.build import Library, load
from charjax.runtime.compiler_options import loop_compiler_options
from charjax.runtime.dtypes import fast_dtype
from charjax.runtime.keys import Stream, indexed_key, stream_key
from charjax.types import PyTree, Scalar

_MAX_CHARS = 10**9
_MAX_SAMPLES = 10**6

# Sizes of the first groups, by platform, where XLA multiplies; the last one repeats. On a CPU
# five sequences take about as long as one, and each further one adds its arithmetic; on
# accelerators further sequences are nearly free.
_GROUP_SIZES: dict[str, tuple[int, ...]] = {"cpu": (5, 11, 48, 64)}
_ACCELERATOR_GROUP_SIZES = (64, 256)
# From these group sizes on, XLA:CPU is faster with feature-major states, and with int8 weights
# held in bfloat16.
_MIN_FEATURE_MAJOR = 64
_MIN_BFLOAT16 = 8
_CHUNK = 256  # characters in one dispatch, unless their noise exceeds
_MAX_NOISE = 1 << 23  # numbers drawn ahead of the scan

# Token ids of the samples of one group, chunk by chunk.
Chunks = Iterator[Int[np.ndarray, "samples chunk"]]


class Sampler:
    """A model that can be sampled any number of times.

    Its weights are rearranged once for each `GroupFormat`.
    """

    def __init__(self, config: ModelConfig, params: PyTree, *, masked: int | None) -> None:
        """Takes a model; its weights are rearranged when a group first needs them.

        Args:
          config: the architecture.
          params: of a `CharRNN`.
          masked: a token never to sample, the vocabulary's [UNK]; None: all may be.
        """
        self._config, self._vocab_size = config, params["output_bias"].shape[0]
        self._weights: Callable[[GroupFormat], DecodeWeights] = functools.cache(
            lambda group_format: sampler_weights(config, masked, group_format, params)
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
        if prompt.size == 0:
            raise InputError("the prompt is empty: the sampler needs a token to start from")
        check_ids(prompt, self._vocab_size)
        if not 0 <= num_chars <= _MAX_CHARS:
            raise InputError(f"--num_chars={num_chars}: must be from 0 to {_MAX_CHARS:,}")
        if not 1 <= num_samples <= _MAX_SAMPLES:
            raise InputError(f"--num_samples={num_samples}: must be from 1 to {_MAX_SAMPLES:,}")
        for first, size in sample_groups(self._config, num_samples):
            weights = self._weights(group_format(self._config, size))
            group = _Group(self._config, weights, size, first, min(size, num_samples - first))
            yield _sample_group(group, prompt, num_chars, sampling)


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


def sample_groups(config: ModelConfig, num_samples: int) -> Iterator[tuple[int, int]]:
    """(first sample, size) of each group.

    Sizes grow, so that the first samples are ready soon and many of them use the whole
    machine.
    """
    sizes = _GROUP_SIZES.get(jax.default_backend(), _ACCELERATOR_GROUP_SIZES)
    batch_invariant = config.dtype == "int8" or _packing_library(config) is not None
    if batch_invariant and jax.default_backend() == "cpu":
        sizes = (min(num_samples, sizes[-1]),)
    first = 0
    for size in itertools.chain(sizes, itertools.repeat(sizes[-1])):
        if first >= num_samples:
            return
        yield first, size
        first += size


class GroupFormat(NamedTuple):
    """The format of the weights for groups of a size.

    Attributes:
      layout: of the group's states.
      operands: the dtype that holds int8 weights; "" for other weights.
      library: the C library to pack the weights for; None: XLA multiplies.
    """

    layout: Layout
    operands: str
    library: Library | None


def group_format(config: ModelConfig, size: int) -> GroupFormat:
    """The fastest format for groups of a size."""
    int8, library = config.dtype == "int8", _packing_library(config)
    if library:
        return GroupFormat("batch_major", fast_dtype() if int8 else "", library)
    layout: Layout = "vector" if size == 1 else "batch_major"
    if size >= _MIN_FEATURE_MAJOR:
        layout = "feature_major"
    operands = fast_dtype() if size >= _MIN_BFLOAT16 else "float32"
    return GroupFormat(layout, operands if int8 else "", None)


def _packing_library(config: ModelConfig) -> Library | None:
    """The C library, for its packed matmul, if it runs this model's recurrence."""
    model = replace(config, dtype=fast_dtype()) if config.dtype == "int8" else config
    if resolve(model, 1, strict=False).implementation != "c":
        return None
    library = load()
    return library if isinstance(library, Library) else None


@partial(jax.jit, static_argnums=(0, 1, 2))
def sampler_weights(
    config: ModelConfig, masked: int | None, group_format: GroupFormat, params: PyTree
) -> DecodeWeights:
    """The weights as the sampler's groups read them.

    Args:
      config: the architecture.
      masked: a token never to sample, or None.
      group_format: of the groups.
      params: of a `CharRNN`.
    """
    layout, operands, library = group_format
    weights = decode_weights(config, params, layout=layout, operands=operands, packed=library)
    return weights if masked is None else mask_token(weights, masked)


class _Group(NamedTuple):
    """Samples that run side by side.

    Attributes:
      config: the architecture.
      weights: of the model, in the group's format.
      size: sequences in the batch.
      first: number of the first sample.
      wanted: how many of the samples were asked for.
    """

    config: ModelConfig
    weights: DecodeWeights
    size: int
    first: int
    wanted: int


class _Static(NamedTuple):
    """What the sampling loop is compiled for."""

    config: ModelConfig
    top_k: int
    use_top_p: bool


class _LoopCarry(NamedTuple):
    """What the sampling loop carries: the next step's input gates, and the state before it."""

    igates: Float[Array, "_ _"]
    state: DecodeState


def _sample_group(
    group: _Group, prompt: Int[np.ndarray, " prompt"], num_chars: int, sampling: Sampling
) -> Chunks:
    """The samples of one group, in chunks; the first chunk is empty.

    The same compiled loop reads the prompt, whose tokens are forced instead of sampled.
    """
    static = _Static(group.config, sampling.top_k, sampling.top_p < 1)
    temperature = np.float32(min(sampling.temperature, MAX_TEMPERATURE))
    top_p, seed = np.float32(sampling.top_p), np.uint32(sampling.seed)
    keys, loop = _start(group.config, group.size, group.weights, seed, (group.first, prompt[0]))
    chunk = max(1, min(_CHUNK, _MAX_NOISE // (group.size * group.weights.vocab_size)))
    num_forced = prompt.size - 1
    yield np.empty((group.wanted, 0), np.int32)  # so that a text of no characters has a chunk, too
    for start in range(0, num_forced + num_chars, chunk):
        forced = np.full(chunk, -1, np.int32)  # -1: sample
        given = prompt[1 + start : 1 + start + chunk]
        forced[: given.size] = given
        positions = start - num_forced + np.arange(chunk)
        loop, tokens = _compiled_loop()(
            static, group.weights, loop, (forced, positions), keys, temperature, top_p
        )
        kept = (positions >= 0) & (positions < num_chars)
        if kept.any():
            yield np.asarray(tokens)[: group.wanted, kept]


@partial(jax.jit, static_argnums=(0, 1))
def _start(
    config: ModelConfig,
    size: int,
    weights: DecodeWeights,
    seed: UInt32[Array, ""],
    first: tuple[Int[Array, ""], Int[Array, ""]],
) -> tuple[Key[Array, " batch"], _LoopCarry]:
    """Each sample's key, and the loop's carry before the first token.

    Args:
      config: the architecture.
      size: of the group.
      weights: of the model.
      seed: of all samples.
      first: (number of the first sample, first token).
    """
    number, token = first
    root = stream_key(seed, Stream.SAMPLE)  # here, since each call outside is one more program
    keys = jax.vmap(indexed_key, (None, 0))(root, number + jnp.arange(size))
    state = decode_state(weights, initial_carry(config, size))
    return keys, _LoopCarry(weights.lookup(jnp.full((size,), token, jnp.int32)), state)


@functools.cache
def _compiled_loop() -> Callable[..., tuple[_LoopCarry, Int[Array, "batch time"]]]:
    # Compiled when first used: the compiler options ask for the platform.
    return jax.jit(
        _sampling_loop,
        static_argnums=0,
        donate_argnums=2,
        compiler_options=loop_compiler_options(),
    )


def _sampling_loop(
    static: _Static,
    weights: DecodeWeights,
    loop: _LoopCarry,
    given: tuple[Int[Array, " time"], Int[Array, " time"]],
    keys: Key[Array, " batch"],
    temperature: Scalar,
    top_p: Scalar,
) -> tuple[_LoopCarry, Int[Array, "batch time"]]:
    """Reads a token and chooses the next one, at each position.

    Args:
      static: what it is compiled for.
      weights: of the model.
      loop: before the first position.
      given: (the token to force or -1, the position in the sample) of each step.
      keys: one per sample.
      temperature: 0 is greedy.
      top_p: unused without `static.use_top_p`.
    """
    forced, positions = given
    # All noise before the loop: inside, each draw would be a dozen tiny operations.
    position_keys = jax.vmap(jax.vmap(indexed_key, (0, None)), (None, 0))(keys, positions)
    noise = jax.vmap(partial(gumbel_noise, vocab_size=weights.vocab_size))(position_keys)

    def advance(loop: _LoopCarry, xs: tuple[Array, Array]) -> tuple[_LoopCarry, Array]:
        forced_token, step_noise = xs
        logits, state = decode_step(static.config, weights, loop.igates, loop.state)
        if static.top_k:
            logits = mask_below_top_k(logits, static.top_k)
        nucleus = top_p if static.use_top_p else None
        sampled = sample_with_noise(logits, step_noise, temperature, nucleus)
        token = jnp.where(forced_token >= 0, forced_token, sampled)
        return _LoopCarry(weights.lookup(token), state), token

    loop, tokens = jax.lax.scan(advance, loop, (forced, noise))
    return loop, tokens.T
