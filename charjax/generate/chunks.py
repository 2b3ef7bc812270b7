"""The sampler's machinery: one jitted scan over the carry, for a group of samples at a time.

Random numbers are a function of (seed, sample, position) (law 1). Samples run in
groups whose sizes are fixed in advance, so that even the rounding of the products
does not depend on how many samples are asked for.
"""

from __future__ import annotations

import itertools
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
    step,
    step_state,
    step_weights,
    without_symbol,
)
from charjax.precision import fast_dtype
from charjax.types import Count, PRNGKey, PyTree, Scalar

# The sizes of the first groups, by platform; the last one holds for all that follow. On a
# CPU five rows cost what one does, near enough, and each row more costs its arithmetic;
# elsewhere lanes are all but free.
_GROUPS: dict[str, tuple[int, ...]] = {"cpu": (5, 11, 48, 64)}
_GROUPS_ELSEWHERE = (64, 256)
_FEWEST_COLUMNS = 64  # from so many lanes on, a CPU multiplies columns faster than rows
_CHUNK = 256  # characters a dispatch, where their noise is not too much:
_MOST_NOISE = 1 << 23  # numbers drawn ahead


def groups(config: ModelConfig, num_samples: int) -> Iterator[tuple[int, int]]:
    """(first sample, size) of each group.

    Sizes grow, so that a few samples come with little delay and many with the best use
    of the machine. A sample's group does not depend on how many are asked for, unless
    products are exact: then, where each lane has its price, groups are no larger than needed.
    """
    sizes = _GROUPS.get(jax.default_backend(), _GROUPS_ELSEWHERE)
    if config.dtype == "int8" and jax.default_backend() == "cpu":
        sizes = (min(num_samples, sizes[-1]),)
    first = 0
    for size in itertools.chain(sizes, itertools.repeat(sizes[-1])):
        if first >= num_samples:
            return
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
    columns = size >= _FEWEST_COLUMNS
    operands = "" if config.dtype != "int8" else fast_dtype() if columns else "float32"
    chunk = max(1, min(_CHUNK, _MOST_NOISE // (size * vocab_size)))
    weights, keys, token, state = _begin(
        config, size, columns, operands, masked, params, root, numbers.start, prompt[0]
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


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _begin(
    config: ModelConfig,
    size: int,
    columns: bool,
    operands: str,
    masked: int | None,
    params: PyTree,
    root: PRNGKey,
    first: Count,
    token: Count,
) -> tuple[StepWeights, Key[Array, " batch"], Int[Array, " batch"], StepState]:
    """Weights, keys, tokens and state of a group before its first character."""
    weights = step_weights(config, params, columns=columns, operands=operands)
    if masked is not None:
        weights = without_symbol(weights, masked)
    keys = jax.vmap(indexed_key, (None, 0))(root, first + jnp.arange(size))
    state = step_state(weights, initial_carry(config, size))
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
