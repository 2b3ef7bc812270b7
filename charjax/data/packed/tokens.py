"""Token ids of a packed text, read chunk by chunk as they are indexed."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorstore as ts
from jaxtyping import Int, Int64, Integer, UInt32

from charjax.data.packed import files
from charjax.data.packed.index import array_name
from charjax.data.packed.store import TextStore
from charjax.data.tokens.encoded_text import token_dtype, translation
from charjax.data.tokens.runs import Runs
from charjax.data.vocab import Vocab

_CACHE_BYTES = 1 << 26  # of chunks in memory


class StoreTokens:
    """The token ids of a part of a packed text, read from disk when they are indexed.

    Chunks that were read are kept in memory up to a limit. Several threads may read.
    """

    def __init__(self, chunks: _Chunks, begin: int, end: int, runs: Runs | None = None) -> None:
        """Reads nothing.

        Args:
          chunks: the whole text.
          begin: where the part begins.
          end: where it ends.
          runs: the order of the text, if it was changed; `begin` and `end` are positions in it.
        """
        self._chunks, self._begin, self.size, self._runs = chunks, begin, end - begin, runs

    def __len__(self) -> int:
        return self.size

    @property
    def identity(self) -> str:
        """What tells the part from others, without reading it."""
        name = f"{self._chunks.sha256} {self._begin} {self.size}"
        return name if self._runs is None else f"{name} {self._runs.sha256()}"

    def reordered(self, runs: Runs) -> StoreTokens:
        """The same text in another order; reads nothing."""
        return StoreTokens(self._chunks, 0, self.size, runs)

    def __getitem__(self, index: Any) -> Any:
        """A slice is another part, and reads nothing; positions are read, int32.

        Raises:
          StoreError: a chunk is damaged or missing.
        """
        if isinstance(index, slice):
            begin, end, step = index.indices(self.size)
            if step != 1:
                raise IndexError("a packed text has no slices with steps")
            first, end = self._begin + begin, self._begin + max(begin, end)
            return StoreTokens(self._chunks, first, end, self._runs)
        positions = np.asarray(index)
        if positions.size and not -self.size <= positions.min() <= positions.max() < self.size:
            raise IndexError(f"a position is outside the {self.size} tokens")
        positions = np.where(positions < 0, positions + self.size, positions)
        positions = np.asarray(positions + self._begin)
        return self._chunks.read(self._runs.positions(positions) if self._runs else positions)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All ids; for short parts."""
        return np.asarray(self[np.arange(self.size)], dtype)


class _Chunks:
    """The chunks of a packed text; the least recently used ones are forgotten.

    Attributes:
      sha256: that of the packed text.
    """

    def __init__(self, store: TextStore, vocab: Vocab) -> None:
        """Reads nothing."""
        self._store, self._vocab, self.sha256 = store, vocab, store.index.sha256
        self._shard = functools.cache(self._open_shard)
        token_bytes = token_dtype(len(store.index.characters) + 1).itemsize
        num_cached = _CACHE_BYTES // (files.CHUNK * token_bytes)
        self._chunk = functools.lru_cache(num_cached)(self._start_read)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """The ids at these positions, int32, of the same shape."""
        flat = positions.ravel()
        ids = np.empty(flat.size, np.int32)
        ends = self._store.ends
        shard = np.searchsorted(ends, flat, side="right")
        chunk, in_chunk = np.divmod(flat - np.append(0, ends)[shard], files.CHUNK)
        # In each run, consecutive tokens of one chunk.
        is_next = (np.diff(flat) == 1) & (np.diff(in_chunk) == 1)
        runs = np.flatnonzero(np.append(flat.size > 0, ~is_next))
        wanted = list(zip(shard[runs].tolist(), chunk[runs].tolist(), strict=True))
        # All reads have started before the first one is waited for.
        reads = {which: self._chunk(*which) for which in wanted}
        chunks = {
            (number, chunk): self._store.result(read, array_name("tokens", number))
            for (number, chunk), read in reads.items()
        }
        edges = itertools.pairwise([*runs.tolist(), flat.size])
        for (begin, end), which, first in zip(edges, wanted, in_chunk[runs].tolist(), strict=True):
            _, table = self._shard(which[0])
            tokens = chunks[which][first : first + end - begin]
            # All tokens are in the table: "clip" only spares a pass over them.
            table.take(tokens, out=ids[begin:end], mode="clip")
        return ids.reshape(positions.shape)

    def _start_read(self, number: int, chunk: int) -> Any:
        """The future of a chunk of a shard."""
        array, _ = self._shard(number)
        begin = chunk * files.CHUNK
        return array[begin : min(begin + files.CHUNK, array.size)].read()

    def _open_shard(self, number: int) -> tuple[ts.TensorStore, np.ndarray]:
        """The tokens of a shard, and the id of each."""
        text = self._store.record(number).text
        table = translation(text.token_characters, self._vocab.characters, len(self._vocab))
        return self._store.array("tokens", number, text.dtype), table.astype(np.int32)


class PackedText(NamedTuple):
    """A packed text in the ids of a vocabulary, as `EncodedText` is one in memory.

    Attributes:
      store: the packed text.
      tokens: with boundary tokens before each document and after the last one, if there are any.
      starts: the positions in `tokens` where documents start, ascending from 0.
    """

    store: TextStore
    tokens: StoreTokens
    starts: Int64[np.ndarray, " documents"]

    @classmethod
    def open(cls, store: TextStore, vocab: Vocab) -> PackedText:
        """All of a packed text; reads no token.

        Raises:
          StoreError: the positions of the documents are damaged.
          HostError: they cannot be read.
        """
        tokens = StoreTokens(_Chunks(store, vocab), 0, int(store.ends[-1]))
        return cls(store, tokens, store.document_starts())

    def document_hashes(self) -> UInt32[np.ndarray, " documents"]:
        """See `TextStore.document_hashes`."""
        return self.store.document_hashes()

    def reordered(self, order: Int[np.ndarray, " documents"]) -> PackedText:
        """The same text with its documents in another order; reads nothing."""
        end = len(self.tokens) - self.store.rules.documents.boundary
        runs = Runs.reordered(self.starts, end, order)
        return PackedText(self.store, self.tokens.reordered(runs), runs.document_starts)


# Token ids of a text, in memory or packed.
TokenIds: TypeAlias = Integer[np.ndarray, " tokens"] | StoreTokens
