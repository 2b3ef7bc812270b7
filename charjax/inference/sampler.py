"""The sampler's machinery: one jitted scan over the carry, for a group of samples at a time.

Random numbers are a function of (seed, sample, position) (law 1). Samples run in
groups whose sizes are fixed in advance, so that even the rounding of the products
does not depend on how many samples are asked for. Where it is a lane's own matter, as in
packed products, or there is none, as in products of whole numbers, groups have any size.
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
from jaxtyping import Array, Int, Key

from charjax.config import ModelConfig
from charjax.inference.sampling import (
    HOTTEST,
    Sampling,
    choose_with_noise,
    gumbel_noise,
    mask_below_top_k,
)
from charjax.model.decode import (
    DecodeState,
    DecodeWeights,
    Lanes,
    Layout,
    decode_state,
    decode_weights,
    mask_token,
    step,
)
from charjax.model.network import initial_carry
from charjax.model.recurrence.api import resolve
from charjax.model.recurrence.c.build import Kernels, load
from charjax.runtime.dtypes import fast_dtype
from charjax.runtime.keys import Stream, indexed_key, stream_key
from charjax.runtime.sharding import loop_compiler_options
from charjax.types import Count, PRNGKey, PyTree, Scalar

# The sizes of the first groups, by platform, where XLA multiplies; the last one holds for all
# that follow. On a CPU five rows cost it what one does, near enough, and each row more costs
# its arithmetic; elsewhere lanes are all but free.
_GROUPS: dict[str, tuple[int, ...]] = {"cpu": (5, 11, 48, 64)}
_GROUPS_ELSEWHERE = (64, 256)
_FEWEST_COLUMNS = 64  # a CPU multiplies so many columns faster than rows, and a single one
_FEWEST_NARROW = 8  # so many lanes it multiplies faster in two bytes a number, if at all
_CHUNK = 256  # characters a dispatch, where their noise is not too much:
_MOST_NOISE = 1 << 23  # numbers drawn ahead


def groups(config: ModelConfig, num_samples: int) -> Iterator[tuple[int, int]]:
    """(first sample, size) of each group.

    Sizes grow, so that a few samples come with little delay and many with the best use
    of the machine. A sample's group does not depend on how many are asked for, unless
    a lane's products do not depend on its group: then, on a CPU, where each lane has its
    price, groups are no larger than needed.
    """
    sizes = _GROUPS.get(jax.default_backend(), _GROUPS_ELSEWHERE)
    alone = config.dtype == "int8" or _kernels(config) is not None
    if alone and jax.default_backend() == "cpu":
        sizes = (min(num_samples, sizes[-1]),)
    first = 0
    for size in itertools.chain(sizes, itertools.repeat(sizes[-1])):
        if first >= num_samples:
            return
        yield first, size
        first += size


class Form(NamedTuple):
    """How the weights of a group's size lie.

    Attributes:
      lie: how the group's lanes lie.
      operands: the dtype of kernels of whole numbers; "" where they are none.
      packed: what kernels are packed for; None: they are not.
    """

    layout: Layout
    operands: str
    packed: Kernels | None


def form(config: ModelConfig, size: int) -> Form:
    """The form that is quickest for groups of a size."""
    whole, packed = config.dtype == "int8", _kernels(config)
    if packed:
        return Form("rows", fast_dtype() if whole else "", packed)
    layout: Layout = "columns" if size >= _FEWEST_COLUMNS else "column" if size == 1 else "rows"
    operands = fast_dtype() if size >= _FEWEST_NARROW else "float32"
    return Form(layout, operands if whole else "", None)


def _kernels(config: ModelConfig) -> Kernels | None:
    """The C kernels, where they run this model's recurrence."""
    model = replace(config, dtype=fast_dtype()) if config.dtype == "int8" else config
    if resolve(model, 1, strict=False).implementation != "c":
        return None
    kernels = load()
    return kernels if isinstance(kernels, Kernels) else None


@partial(jax.jit, static_argnums=(0, 1, 2))
def sampler_weights(
    config: ModelConfig, masked: int | None, form: Form, params: PyTree
) -> DecodeWeights:
    """The weights that `write_group` takes.

    Args:
      config: the architecture.
      masked: an id never to write, or None.
      form: of the groups they are for.
      params: of a `CharRNN`.
    """
    weights = decode_weights(
        config, params, layout=form.layout, operands=form.operands, packed=form.packed
    )
    return weights if masked is None else mask_token(weights, masked)


def write_group(
    config: ModelConfig,
    weights: DecodeWeights,
    prompt: Int[np.ndarray, " prompt"],
    num_chars: int,
    numbers: range,
    size: int,
    sampling: Sampling,
) -> Iterator[Int[np.ndarray, "samples chunk"]]:
    """The samples of one group, in chunks; the first is empty.

    The prompt runs through the same program, as forced characters.

    Args:
      config: the architecture.
      weights: in the form of the group's size.
      prompt: ids to read first, at least one.
      num_chars: how many characters to write.
      numbers: of the samples that are wanted, from the group's first on.
      size: of the whole group.
      sampling: how characters are chosen.
    """
    root = stream_key(sampling.seed, Stream.SAMPLE)
    chunk = max(1, min(_CHUNK, _MOST_NOISE // (size * weights.symbols)))
    keys, x, state = _begin(config, size, weights, root, numbers.start, prompt[0])
    forced_total = prompt.size - 1
    yield np.empty((len(numbers), 0), np.int32)  # a text of no characters is a text
    for start in range(0, forced_total + num_chars, chunk):
        # -1 leaves the choice to the model.
        forced = np.full(chunk, -1, np.int32)
        given = prompt[1 + start : 1 + start + chunk]
        forced[: given.size] = given
        positions = start - forced_total + np.arange(chunk)
        x, state, written = _writer()(
            config,
            sampling.top_k,
            sampling.top_p < 1,
            weights,
            x,
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


@partial(jax.jit, static_argnums=(0, 1))
def _begin(
    config: ModelConfig,
    size: int,
    weights: DecodeWeights,
    root: PRNGKey,
    first: Count,
    token: Count,
) -> tuple[Key[Array, " batch"], Lanes, DecodeState]:
    """Keys, the first character as `step` reads it, and the state before it."""
    keys = jax.vmap(indexed_key, (None, 0))(root, first + jnp.arange(size))
    state = decode_state(weights, initial_carry(config, size))
    return keys, weights.select(jnp.full((size,), token, jnp.int32)), state


@functools.cache
def _writer() -> Callable[..., tuple[Lanes, DecodeState, Int[Array, "batch time"]]]:
    return jax.jit(
        _write_chunk,
        static_argnums=(0, 1, 2),
        donate_argnums=(4, 5),
        compiler_options=loop_compiler_options(),
    )


def _write_chunk(
    config: ModelConfig,
    top_k: int,
    nucleus: bool,
    weights: DecodeWeights,
    x: Lanes,
    state: DecodeState,
    forced: Int[Array, " time"],
    positions: Int[Array, " time"],
    keys: Key[Array, " batch"],
    temperature: Scalar,
    top_p: Scalar,
) -> tuple[Lanes, DecodeState, Int[Array, "batch time"]]:
    # All random numbers at once: in the loop, each would be a dozen tiny operations.
    position_keys = jax.vmap(jax.vmap(indexed_key, (0, None)), (None, 0))(keys, positions)
    drawn = jax.vmap(partial(gumbel_noise, vocab_size=weights.symbols))(position_keys)

    def advance(
        at: tuple[Lanes, DecodeState], given: tuple[Array, Array]
    ) -> tuple[tuple[Lanes, DecodeState], Array]:
        x, state = at
        forced, gumbel_noise = given
        logits, state = step(config, weights, x, state)
        if top_k:
            logits = mask_below_top_k(logits, top_k)
        chosen = choose_with_noise(logits, gumbel_noise, temperature, top_p if nucleus else None)
        token = jnp.where(forced >= 0, forced, chosen)
        return (weights.select(token), state), token

    (x, state), written = jax.lax.scan(advance, (x, state), (forced, drawn))
    return x, state, written.T
