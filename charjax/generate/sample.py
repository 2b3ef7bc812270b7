"""Writing text: one jitted scan over the carry, random numbers by sample and position.

Sample i of a seed is the same text however many samples are asked for and
however the text is cut into chunks: its key is a function of (seed, i, position)
(law 1), and samples run in groups of a fixed size, so that even the rounding
of the products does not depend on their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from charjax.config import ModelConfig
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.generate.trained import Trained
from charjax.keys import Stream, indexed_key, stream_key
from charjax.model.network import initial_carry
from charjax.model.stepper import StepState, StepWeights, step, step_state, step_weights
from charjax.types import PRNGKey, PyTree, Scalar

_GROUP = 8  # samples a dispatch
_CHUNK = 128  # characters a dispatch
_MOST_CHARS = 10**9
_MOST_SAMPLES = 10**6
# Beyond these the division of logits leaves float32, and an excluded character becomes a NaN.
_COLDEST, _HOTTEST = 1e-30, 1e30


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
      by chunk as they are written, and at least one chunk, which may be empty.

    Raises:
      InputError: an empty prompt, or a number out of range.
    """
    if prompt.size == 0:
        raise InputError("the prompt is empty: the sampler needs a symbol to start from")
    if not 0 <= num_chars <= _MOST_CHARS:
        raise InputError(f"--num_chars={num_chars}: must be from 0 to {_MOST_CHARS:,}")
    if not 1 <= num_samples <= _MOST_SAMPLES:
        raise InputError(f"--num_samples={num_samples}: must be from 1 to {_MOST_SAMPLES:,}")
    weights = jax.jit(step_weights, static_argnums=0)(config, params)
    for first in range(0, num_samples, _GROUP):
        numbers = range(first, min(first + _GROUP, num_samples))
        yield _sample_group(config, weights, prompt, num_chars, numbers, sampling, masked)


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
    weights: StepWeights,
    prompt: Int[np.ndarray, " prompt"],
    num_chars: int,
    numbers: range,
    sampling: Sampling,
    masked: int | None,
) -> Iterator[Int[np.ndarray, "samples chunk"]]:
    """Chunks of one group; the prompt runs through the same program, as forced characters."""
    key = stream_key(sampling.seed, Stream.SAMPLE)
    keys = jax.vmap(indexed_key, (None, 0))(key, numbers.start + jnp.arange(_GROUP))
    state = step_state(config, weights, initial_carry(config, _GROUP))
    token = jnp.full((_GROUP,), prompt[0], jnp.int32)
    forced_total = prompt.size - 1
    yield np.empty((len(numbers), 0), np.int32)  # a text of no characters is a text
    for start in range(0, forced_total + num_chars, _CHUNK):
        # -1 leaves the choice to the model.
        forced = np.full(_CHUNK, -1, np.int32)
        given = prompt[1 + start : 1 + start + _CHUNK]
        forced[: given.size] = given
        positions = start - forced_total + np.arange(_CHUNK)
        token, state, written = _write_chunk(
            config,
            sampling.top_k,
            sampling.top_p < 1,
            masked,
            weights,
            token,
            state,
            forced,
            positions,
            keys,
            jnp.float32(min(sampling.temperature, _HOTTEST)),
            jnp.float32(sampling.top_p),
        )
        wanted = (positions >= 0) & (positions < num_chars)
        if wanted.any():
            yield np.asarray(written)[: len(numbers), wanted]


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=6)
def _write_chunk(
    config: ModelConfig,
    top_k: int,
    nucleus: bool,
    masked: int | None,
    weights: StepWeights,
    token: Int[Array, " batch"],
    state: StepState,
    forced: Int[Array, " time"],
    positions: Int[Array, " time"],
    keys: Key[Array, " batch"],
    temperature: Scalar,
    top_p: Scalar,
) -> tuple[Int[Array, " batch"], StepState, Int[Array, "batch time"]]:
    def advance(
        at: tuple[Array, StepState], given: tuple[Array, Array]
    ) -> tuple[tuple[Array, StepState], Array]:
        token, state = at
        forced, position = given
        logits, state = step(config, weights, token, state)
        if masked is not None:
            logits = logits.at[:, masked].set(-jnp.inf)
        if top_k:
            logits = keep_top_k(logits, top_k)
        position_keys = jax.vmap(indexed_key, (0, None))(keys, position)
        chosen = choose(logits, position_keys, temperature, top_p if nucleus else None)
        token = jnp.where(forced >= 0, forced, chosen)
        return (token, state), token

    (token, state), written = jax.lax.scan(advance, (token, state), (forced, positions))
    return token, state, written.T


def choose(
    logits: Float[Array, "batch vocab"],
    keys: Key[Array, " batch"],
    temperature: Scalar,
    top_p: Scalar | None = None,
) -> Int[Array, " batch"]:
    """The next character of each lane, int32.

    Args:
      logits: float32; minus infinity excludes a character.
      keys: one a lane.
      temperature: 0 takes the likeliest character, exactly.
      top_p: nucleus sampling (Holtzman et al. 2019) at this temperature; None: off.
    """
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # Shifted so that the largest is 0, which no temperature makes overflow.
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    scaled = shifted / jnp.clip(temperature, _COLDEST, _HOTTEST)
    if top_p is not None:
        scaled = keep_top_p(scaled, top_p)

    def draw(key: PRNGKey, logits: Float[Array, " vocab"]) -> Int[Array, ""]:
        return jax.random.categorical(key, logits).astype(jnp.int32)

    return jnp.where(temperature > 0, jax.vmap(draw)(keys, scaled), likeliest)


def keep_top_k(logits: Float[Array, "batch vocab"], k: int) -> Float[Array, "batch vocab"]:
    """The logits with all but the `k` largest of each lane at minus infinity; ties are kept."""
    k = min(k, logits.shape[-1])
    least = jax.lax.top_k(logits, k)[0][:, -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "batch vocab"], p: Scalar) -> Float[Array, "batch vocab"]:
    """The logits with all but the smallest set of total probability `p` at minus infinity."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(ordered)
    # A character stays if those before it do not reach p; the likeliest always stays.
    stays = jnp.cumsum(probs, axis=-1) - probs < jnp.maximum(p, np.finfo(np.float32).tiny)
    least = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)
