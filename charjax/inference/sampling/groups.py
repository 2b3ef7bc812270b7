"""Groups of samples that run side by side: their sizes, and the format of the weights for each.

The sizes are fixed in advance where the rounding of a matmul depends on the size of the batch, so
that a sample does not depend on how many are asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax

from charjax.config import ModelConfig
from charjax.model.decode_weights import DecodeWeights, Layout, decode_weights, mask_token
from charjax.model.recurrence.api import resolve
from charjax.model.recurrence.c.build import load
from charjax.model.recurrence.c.library import Library
from charjax.runtime.dtypes import fast_dtype
from charjax.types import PyTree

MAX_PERSISTENT_GROUP = 64  # rows of the persistent kernel
# Sizes of the first groups where XLA multiplies; the last one repeats. On a CPU five sequences
# take about as long as one, and each further one adds its arithmetic; on accelerators further
# sequences are nearly free.
_CPU_GROUP_SIZES: tuple[int, ...] = (5, 11, 48, 64)
_ACCELERATOR_GROUP_SIZES = (64, 256)
# From these group sizes on, XLA:CPU is faster with feature-major states, and with int8 weights
# held in bfloat16.
_MIN_FEATURE_MAJOR = 64
_MIN_BFLOAT16 = 8
_CHUNK, _PERSISTENT_CHUNK = 256, 1024  # characters in one dispatch, unless their noise exceeds
_MAX_NOISE = 1 << 23  # numbers drawn ahead of the scan


def sample_groups(
    config: ModelConfig, num_samples: int, *, persistent: bool = False
) -> Iterator[tuple[int, int]]:
    """(first sample, size) of each group.

    Sizes grow, so that the first samples are ready soon and many of them use the whole
    machine.

    Args:
      config: the architecture.
      num_samples: of all groups.
      persistent: whether the groups run in the persistent kernel, which is batch-invariant.
    """
    sizes = _CPU_GROUP_SIZES if jax.default_backend() == "cpu" else _ACCELERATOR_GROUP_SIZES
    if persistent:
        sizes = (min(num_samples, MAX_PERSISTENT_GROUP),)
    elif is_batch_invariant(config):
        sizes = (min(num_samples, sizes[-1]),)
    first = 0
    for size in itertools.chain(sizes, itertools.repeat(sizes[-1])):
        if first >= num_samples:
            return
        yield first, size
        first += size


def chunk_length(size: int, vocab_size: int, *, persistent: bool) -> int:
    """Characters of each sample of a group in one dispatch."""
    chunk = _PERSISTENT_CHUNK if persistent else _CHUNK
    return max(1, min(chunk, _MAX_NOISE // (size * vocab_size)))


def has_persistent_loop(config: ModelConfig, vocab_size: int, batch: int) -> bool:
    """Whether a loop with few options is a persistent kernel on this GPU; see `Program`."""
    if resolve(config, batch, strict=False).implementation != "persistent":
        return False
    # Imported on first use, since Pallas loads slowly.
    from charjax.model.recurrence.pallas_hopper.decode import fits

    return fits(config, vocab_size, batch)


def is_batch_invariant(config: ModelConfig) -> bool:
    """Whether a sample has the same bits in a batch of any size, whatever its options, here."""
    return jax.default_backend() == "cpu" and packing_library(config) is not None


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


def group_format(config: ModelConfig, vocab_size: int, size: int) -> GroupFormat:
    """The fastest format for groups of a size."""
    int8, library = config.dtype == "int8", packing_library(config)
    if library:
        return GroupFormat("batch_major", fast_dtype() if int8 else "", library)
    if size <= MAX_PERSISTENT_GROUP and has_persistent_loop(config, vocab_size, size):
        return GroupFormat("batch_major", "", None)
    layout: Layout = "vector" if size == 1 else "batch_major"
    if size >= _MIN_FEATURE_MAJOR:
        layout = "feature_major"
    operands = fast_dtype() if size >= _MIN_BFLOAT16 else "float32"
    return GroupFormat(layout, operands if int8 else "", None)


def packing_library(config: ModelConfig) -> Library | None:
    """The C library, for its packed matmul, if it runs this model's recurrence."""
    model = replace(config, dtype=fast_dtype()) if config.dtype == "int8" else config
    if resolve(model, 1, strict=False).implementation != "c":
        return None
    library = load()
    return library if isinstance(library, Library) else None


@partial(jax.jit, static_argnums=(0, 1, 2))
def weights_in_format(
    config: ModelConfig, masked: int | None, group_format: GroupFormat, params: PyTree
) -> DecodeWeights:
    """The weights in the format of a group.

    Args:
      config: the architecture.
      masked: a token never to sample, or None.
      group_format: of the groups.
      params: of a `CharRNN`.
    """
    layout, operands, library = group_format
    weights = decode_weights(config, params, layout=layout, operands=operands, packed=library)
    return weights if masked is None else mask_token(weights, masked)
