"""Writing text: one jitted scan over the carry, random numbers by sample and position.

Sample i of a seed is the same text however many samples are asked for and
however the text is cut into chunks: its key is a function of (seed, i, position)
(law 1). Samples run in groups whose sizes are fixed in advance, so that even the
rounding of the products does not depend on their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from charjax.config import ModelConfig
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.generate.choice import choose_by, keep_top_k, noise
from charjax.generate.trained import Trained
from charjax.keys import Stream, indexed_key, stream_key
from charjax.model.network import initial_carry
from charjax.model.stepper import (
    StepState,
    StepWeights,
    for_one_lane,
    step,
    step_state,
    step_weights,
    without_symbol,
)
from charjax.types import Count, PRNGKey, PyTree, Scalar

# The first group's samples, and the most of any group, by platform. A CPU is busy with
# one sample, and each row more costs it time; elsewhere rows are all but free.
_GROUPS = {"cpu": (1, 64)}
_GROUPS_ELSEWHERE = (64, 256)
_GROWTH = 4  # a group ends at this many times the number of samples before it
_CHUNK = 256  # characters a dispatch, where their noise is not too much:
_MOST_NOISE = 1 << 23  # numbers drawn ahead
_MOST_CHARS = 10**9
_MOST_SAMPLES = 10**6


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next character is chosen.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest character.
      top_k: keep the k likeliest characters; 0 keeps all.
      top_p: keep the likeliest characters that together have this probability; 1 keeps all.
      seed: of the random numbers.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(
                f"--temperature={self.temperature}: must be 0 (greedy) or a positive number"
            )
        if self.top_k < 0:
            raise InputError(f"--top_k={self.top_k}: must be 0 (all characters) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top_p={self.top_p}: must be above 0 and at most 1")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed={self.seed}: must be from 0 to 2**32 - 1")


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
    """Continues a prompt.

    Args:
      config: the architecture.
      params: of a `CharRNN`.
      prompt: ids to read first, at least one; not part of the result.
      num_chars: how many characters to write.
      num_samples: how many continuations.
      sampling: how characters are chosen.
      masked: an id never to write, the vocabulary's [UNK]; None: all may be written.

    Yields:
      One iterator a group of samples, in order. It yields the group's ids, int32, chunk
      by chunk as they are written.

    Raises:
      InputError: an empty prompt, or a number out of range.
    """
    if prompt.size == 0:
        raise InputError("the prompt is empty: the sampler needs a symbol to start from")
    if not 0 <= num_chars <= _MOST_CHARS:
        raise InputError(f"--num_chars={num_chars}: must be from 0 to {_MOST_CHARS:,}")
    if not 1 <= num_samples <= _MOST_SAMPLES:
        raise InputError(f"--num_samples={num_samples}: must be from 1 to {_MOST_SAMPLES:,}")
    for first, size in _groups(num_samples):
        rows = min(size, num_samples - first)
        chunks = _sample_group(config, params, prompt, num_chars, (first, size), sampling, masked)
        yield (ids[:rows] for ids in chunks)


def _groups(num_samples: int) -> Iterator[tuple[int, int]]:
    """(first sample, size) of each group.

    Sizes grow, so that one sample is written with the least delay and many with the
    best use of the machine. A sample's group does not depend on how many are asked for.
    """
    smallest, largest = _GROUPS.get(jax.default_backend(), _GROUPS_ELSEWHERE)
    first = 0
    while first < num_samples:
        size = min(smallest if first == 0 else (_GROWTH - 1) * first, largest)
        yield first, size
        first += size


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
    groups = sample(
        config,
        params,
        prompt_ids(vocab, prompt),
        num_chars=num_chars,
        num_samples=num_samples,
        sampling=sampling,
        masked=vocab.unk_id,
    )
    return _whole(vocab, groups)


def write_texts(
    trained: Trained,
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
    ids = prompt_ids(vocab, prompt, unknown=unknown)
    shown = vocab.decode(ids) if prompt else ""
    groups = sample(
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
        chunks = next(groups)
        yield shown
        yield from (decoder.decode(chunk[0]) for chunk in chunks)
        yield decoder.flush()
        return
    for number, text in enumerate(_whole(vocab, groups)):
        yield (separator if number else "") + shown + text


def _whole(
    vocab: Vocab, groups: Iterator[Iterator[Int[np.ndarray, "samples chunk"]]]
) -> Iterator[str]:
    """The samples of all groups as whole texts."""
    for group in groups:
        yield from map(vocab.decode, np.concatenate(list(group), axis=1))


def prompt_ids(vocab: Vocab, prompt: str, *, unknown: str = "error") -> Int[np.ndarray, " prompt"]:
    """The ids of a prompt; an empty one becomes the vocabulary's start symbol.

    Raises:
      InputError: it has characters that the vocabulary lacks, unless `unknown` is "unk".
    """
    ids = vocab.encode(prompt, unknown=unknown)
    return ids if ids.size else np.array([vocab.start], np.int32)


def _sample_group(
    config: ModelConfig,
    params: PyTree,
    prompt: Int[np.ndarray, " prompt"],
    num_chars: int,
    group: tuple[int, int],
    sampling: Sampling,
    masked: int | None,
) -> Iterator[Int[np.ndarray, "samples chunk"]]:
    """Chunks of one group; the prompt runs through the same program, as forced characters."""
    first, size = group
    if num_chars == 0:
        yield np.empty((size, 0), np.int32)
        return
    root = stream_key(sampling.seed, Stream.SAMPLE)
    vocab_size = params["output_bias"].shape[0]
    chunk = max(1, min(_CHUNK, _MOST_NOISE // (size * vocab_size)))
    weights, keys, token, state = _begin(config, size, masked, params, root, first, prompt[0])
    forced_total = prompt.size - 1
    for start in range(0, forced_total + num_chars, chunk):
        # -1 leaves the choice to the model.
        forced = np.full(chunk, -1, np.int32)
        given = prompt[1 + start : 1 + start + chunk]
        forced[: given.size] = given
        positions = start - forced_total + np.arange(chunk)
        token, state, written = _write_chunk(
            config,
            sampling.top_k,
            sampling.top_p < 1,
            weights,
            token,
            state,
            forced,
            positions,
            keys,
            jnp.float32(sampling.temperature),
            jnp.float32(sampling.top_p),
        )
        wanted = (positions >= 0) & (positions < num_chars)
        if wanted.any():
            yield np.asarray(written)[:, wanted]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(
    config: ModelConfig,
    size: int,
    masked: int | None,
    params: PyTree,
    root: PRNGKey,
    first: Count,
    token: Count,
) -> tuple[StepWeights, Key[Array, " batch"], Int[Array, " batch"], StepState]:
    """Weights, keys, tokens and state of a group before its first character."""
    weights = step_weights(config, params)
    if masked is not None:
        weights = without_symbol(weights, masked)
    if size == 1:
        weights = for_one_lane(weights)
    keys = jax.vmap(indexed_key, (None, 0))(root, first + jnp.arange(size))
    state = step_state(config, weights, initial_carry(config, size))
    return weights, keys, jnp.full((size,), token, jnp.int32), state


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
def _write_chunk(
    config: ModelConfig,
    top_k: int,
    nucleus: bool,
    weights: StepWeights,
    token: Int[Array, " batch"],
    state: StepState,
    forced: Int[Array, " time"],
    positions: Int[Array, " time"],
    keys: Key[Array, " batch"],
    temperature: Scalar,
    top_p: Scalar,
) -> tuple[Int[Array, " batch"], StepState, Int[Array, "batch time"]]:
    # All random numbers at once: in the loop, each would be a dozen tiny operations.
    position_keys = jax.vmap(jax.vmap(indexed_key, (0, None)), (None, 0))(keys, positions)
    drawn = jax.vmap(partial(noise, vocab_size=weights.symbols))(position_keys)

    def advance(
        at: tuple[Array, StepState], given: tuple[Array, Array]
    ) -> tuple[tuple[Array, StepState], Array]:
        token, state = at
        forced, noise = given
        logits, state = step(config, weights, token, state)
        if top_k:
            logits = keep_top_k(logits, top_k)
        chosen = choose_by(logits, noise, temperature, top_p if nucleus else None)
        token = jnp.where(forced >= 0, forced, chosen)
        return (token, state), token

    (token, state), written = jax.lax.scan(advance, (token, state), (forced, drawn))
    return token, state, written.T
