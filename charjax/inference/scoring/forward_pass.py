"""The forward pass of a model over a text of any length, in parts side by side.

The text is cut into parts that are read as the sequences of a batch. Each part but the first is
preceded by `_CONTEXT` characters of the text, whose logits are dropped. So every character is
predicted from at least that much context, or from all that precedes it. For a model that has
forgotten what is further back, the result is that of one pass over the whole text, up to rounding,
in a fraction of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from charjax.config import ModelConfig
from charjax.data.packed.tokens import StoreTokens, TokenIds
from charjax.data.tokens.ids import as_ids, check_ids, check_special
from charjax.errors import InputError
from charjax.inference.scoring.forward_program import MAX_SEQUENCES, Measure, forward_program
from charjax.model.carry import initial_carry
from charjax.model.shapes import check_params
from charjax.runtime import sharding
from charjax.runtime.compiler_options import check_concrete
from charjax.runtime.display import ProgressFn, counted, no_progress
from charjax.schema import check_integer
from charjax.types import PyTree

_CONTEXT = 512  # characters read before a sequence's own part
_MAX_CHUNK = 128  # characters of each sequence in one dispatch
# Bounds of a dispatch, for large vocabularies and wide models: memory, and seconds without a
# chance to stop.
_MAX_LOGITS_BYTES = 2**28
_MAX_FLOPS = 2**37


class ZeroCarry(NamedTuple):
    """The positions of a text that are read from a zero carry; a text's first one always is.

    Attributes:
      boundary_id: of the token that starts every document; None: the text is one document.
      window: characters between two zero carries, counted from the beginning of the text; 0: the
        carry goes through the text.
    """

    boundary_id: int | None = None
    window: int = 0

    def at(
        self, positions: Int[np.ndarray, "rows time"], inputs: Int[np.ndarray, "rows time"]
    ) -> Bool[np.ndarray, "rows time"] | None:
        """Whether each of these positions is one; None without a boundary and a window."""
        resets = None if self.boundary_id is None else inputs == self.boundary_id
        if self.window:
            starts = positions % self.window == 0
            resets = starts if resets is None else resets | starts
        return resets


class Piece(NamedTuple):
    """What was computed from the logits of consecutive characters.

    Attributes:
      start: the position of the first one among those that are predicted.
      values: a tree of numpy arrays [characters, ...].
    """

    start: int
    values: PyTree


def in_text_order(pieces: Iterator[Piece]) -> PyTree:
    """The values of all pieces, in the order of the text, as a tree of arrays [predicted, ...]."""
    ordered = sorted(pieces, key=lambda piece: piece.start)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *(piece.values for piece in ordered))


def iter_predictions(
    measure: Measure,
    config: ModelConfig,
    params: PyTree,
    ids: TokenIds | Sequence[int],
    *,
    zero_carry: ZeroCarry,
    max_chars: int = 0,
    progress: ProgressFn = no_progress,
) -> Iterator[Piece]:
    """What a function computes from the logits of every character but the first, piece by piece.

    Args:
      measure: (logits [batch, time, vocab], targets [batch, time]) -> a tree of arrays
        [batch, time, ...]. It is compiled once for each function object.
      config: the architecture.
      params: of a `CharRNN`.
      ids: token ids of the text.
      zero_carry: where the carry is zero.
      max_chars: how many characters are predicted, to within 64, in parts at equal distances over
        the text, always the same ones; 0: all.
      progress: called with the number of chunks done and the total.

    Yields:
      Pieces, in the order in which they are computed.

    Raises:
      InputError: the text has fewer than two characters, or an id outside the vocabulary; or
        `max_chars` is negative or no integer; or the parameters are those of a traced function, or
        of another config.
    """
    ids = as_scored_ids(ids)
    check_concrete(params)
    check_integer("max_chars", max_chars, 0)
    vocab_size = check_params(config, params)
    check_special(vocab_size, zero_carry.boundary_id)
    parts = _cut(ids.size - 1, max_chars)
    on_all_devices = len(parts.starts) >= jax.device_count()
    mesh = sharding.data_mesh(None if on_all_devices else jax.local_devices()[:1])
    shard = partial(sharding.shard_local, sharding=sharding.batch_sharding(mesh, axis=0))
    measure_chunk = forward_program(config, measure, mesh)

    # Position p reads ids[p] and predicts ids[p + 1]. Rows are added so that the devices have equal
    # parts. What these rows and the positions outside the text predict is dropped.
    rows = math.ceil(len(parts.starts) / mesh.size) * mesh.size
    starts = np.pad(parts.starts, (0, rows - len(parts.starts)), mode="edge")
    process_rows = sharding.process_rows(rows) if on_all_devices else slice(rows)
    length = _chunk_length(params, rows)
    chunks = math.ceil((parts.context + parts.length) / length)
    params = params if on_all_devices else sharding.local_copy(params)
    params = jax.device_put(params, sharding.replicated(mesh))
    carry = shard(jax.device_get(initial_carry(config, len(starts[process_rows]))))
    for chunk in range(chunks):
        positions = starts - parts.context + chunk * length
        at = positions[process_rows, None] + np.arange(length)
        inputs, targets = inputs_and_targets(ids, at, vocab_size)
        batch = shard((at[:, 0] <= 0, inputs, targets, zero_carry.at(at, inputs)))
        carry, values = measure_chunk(params, carry, *batch)
        values = jax.device_get(values)
        progress(chunk + 1, chunks)
        yield from _pieces(parts, ids.size - 1, positions, values)


def inputs_and_targets(
    ids: TokenIds, positions: Int[np.ndarray, "rows time"], vocab_size: int
) -> tuple[Int[np.ndarray, "rows time"], Int[np.ndarray, "rows time"]]:
    """The int32 tokens at these positions, and the next ones; outside the text, its nearest.

    Raises:
      InputError: one is outside the vocabulary.
    """
    inputs, targets = (ids[np.clip(positions + shift, 0, ids.size - 1)] for shift in (0, 1))
    check_ids(inputs, vocab_size)
    check_ids(targets, vocab_size)
    return inputs.astype(np.int32, copy=False), targets.astype(np.int32, copy=False)


def as_scored_ids(ids: TokenIds | Sequence[int]) -> TokenIds:
    """The ids of a text of two characters or more; raises InputError for others."""
    text = ids if isinstance(ids, StoreTokens) else as_ids(ids)
    if text.size < 2:
        raise InputError(
            f"the text has {counted(text.size, 'character')}: a score needs at least 2"
        )
    return text


def _pieces(
    parts: _Parts, predicted: int, positions: Int[np.ndarray, " rows"], values: PyTree
) -> Iterator[Piece]:
    """The values of a chunk [rows, time] as pieces; those of context and padding are dropped.

    Row r of the chunk begins at `positions[r]`.
    """
    time = jax.tree.leaves(values)[0].shape[1]
    # Rows that only fill up the devices come last.
    for row, (start, position) in enumerate(zip(parts.starts, positions, strict=False)):
        begin = int(max(start, position))
        end = int(min(position + time, start + parts.length, predicted))
        if begin < end:
            inside = slice(begin - position, end - position)
            yield Piece(begin, jax.tree.map(lambda leaf, r=row, i=inside: leaf[r, i], values))


class _Parts(NamedTuple):
    """How a text is cut into sequences.

    Attributes:
      starts: the first position that each sequence predicts from, ascending.
      length: predictions of each sequence; those beyond the text do not count.
      context: characters read before them.
    """

    starts: Int[np.ndarray, " sequences"]
    length: int
    context: int


def _cut(predicted: int, max_chars: int) -> _Parts:
    """The parts of a text with that many characters to predict."""
    measured = min(predicted, max_chars or predicted)
    sequences = max(1, min(MAX_SEQUENCES, measured // (2 * _CONTEXT)))
    starts = np.arange(sequences) * math.ceil(predicted / sequences)
    return _Parts(starts, math.ceil(measured / sequences), _CONTEXT if sequences > 1 else 0)


def _chunk_length(params: PyTree, rows: int) -> int:
    """Characters of each of these rows in one dispatch: a power of two."""
    vocab_size = params["output_bias"].shape[0]
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    load = rows * max(4 * vocab_size / _MAX_LOGITS_BYTES, 2 * weights / _MAX_FLOPS)
    length = _MAX_CHUNK
    while length > 1 and length * load > 1:
        length //= 2
    return length
