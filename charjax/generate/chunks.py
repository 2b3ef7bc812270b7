"""The sampler's machinery: one jitted scan over the carry, for a group of samples at a time.

Random numbers are a function of (seed, sample, position) (law 1). Samples run in
groups whose sizes are fixed in advance, so that even the rounding of the products
does not depend on how many samples are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from charjax.config import ModelConfig
from charjax.generate.choice import HOTTEST, Sampling, choose_by, keep_top_k, noise
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


def groups(num_samples: int) -> Iterator[tuple[int, int]]:
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


def write_group(
    config: ModelConfig,
    params: PyTree,
    prompt: Int[np.ndarray, " prompt"],
    num_chars: int,
    numbers: range,
    size: int,
    sampling: Sampling,
    masked: int | None,
) -> Iterator[Int[np.ndarray, "samples chunk"]]:
    """The samples of one group, in chunks; the first is empty.

    The prompt runs through the same program, as forced characters.

    Args:
      config: the architecture.
      params: of a `CharRNN`.
      prompt: ids to read first, at least one.
      num_chars: how many characters to write.
      numbers: of the samples that are wanted, from the group's first on.
      size: of the whole group.
      sampling: how characters are chosen.
      masked: an id never to write, or None.
    """
    root = stream_key(sampling.seed, Stream.SAMPLE)
    vocab_size = params["output_bias"].shape[0]
    chunk = max(1, min(_CHUNK, _MOST_NOISE // (size * vocab_size)))
    weights, keys, token, state = _begin(
        config, size, masked, params, root, numbers.start, prompt[0]
    )
    forced_total = prompt.size - 1
    yield np.empty((len(numbers), 0), np.int32)  # a text of no characters is a text
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
            jnp.float32(min(sampling.temperature, HOTTEST)),
            jnp.float32(sampling.top_p),
        )
        wanted = (positions >= 0) & (positions < num_chars)
        if wanted.any():
            yield np.asarray(written)[: len(numbers), wanted]


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
