"""Token ids of a packed text, read chunk by chunk as they are indexed."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import tensorstore as ts
from jaxtyping import Integer

from charjax.data.runs import Runs
from charjax.data.store import TextStore
from charjax.data.store_files import CHUNK
from charjax.data.store_index import ShardRecord, array_name

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

    @classmethod
    def open(cls, store: TextStore, translate: Callable[[ShardRecord], np.ndarray]) -> StoreTokens:
        """All of a packed text; `translate` gives the id of each token of a shard."""
        chunks = _Chunks(store, translate)
        return cls(chunks, 0, int(chunks.ends[-1]))

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
      ends: the position after each shard's last token.
      sha256: that of the packed text.
    """

    def __init__(self, store: TextStore, translate: Callable[[ShardRecord], np.ndarray]) -> None:
        """Reads nothing."""
        sizes = np.array([shard.tokens for shard in store.shards], np.int64)
        self._store, self._translate, self.sha256 = store, translate, store.index.sha256
        self.ends = np.cumsum(sizes)
        self._ends_in_chunks = np.cumsum(-(-sizes // CHUNK))
        self._shards: dict[int, tuple[ts.TensorStore, np.ndarray]] = {}
        self._cache: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, positions: np.ndarray) -> np.ndarray:
        """The ids at these positions, int32, of the same shape."""
        flat = positions.ravel()
        ids = np.empty(flat.size, np.int32)
        shard = np.searchsorted(self.ends, flat, side="right")
        chunk, in_chunk = np.divmod(flat - np.append(0, self.ends)[shard], CHUNK)
        chunk += np.append(0, self._ends_in_chunks)[shard]
        # In each run, consecutive tokens of one chunk.
        is_next = (np.diff(flat) == 1) & (np.diff(chunk) == 0)
        runs = np.flatnonzero(np.append(flat.size > 0, ~is_next))
        wanted = chunk[runs].tolist()
        with self._lock:
            chunks = self._load(list(dict.fromkeys(wanted)))
        edges = itertools.pairwise([*runs.tolist(), flat.size])
        for (begin, end), of_run, first in zip(edges, wanted, in_chunk[runs].tolist(), strict=True):
            tokens, table = chunks[of_run]
            # All tokens are in the table: "clip" only spares a pass over them.
            table.take(tokens[first : first + end - begin], out=ids[begin:end], mode="clip")
        return ids.reshape(positions.shape)

    def _load(self, wanted: list[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Chunks, each with the ids of its tokens: from the cache, else read, all at once."""
        loaded = {chunk: self._cache[chunk] for chunk in wanted if chunk in self._cache}
        pending = [(chunk, *self._start_read(chunk)) for chunk in wanted if chunk not in loaded]
        for chunk, shard, future, table in pending:
            with self._store.as_store_errors(array_name("tokens", shard)):
                loaded[chunk] = self._cache[chunk] = future.result(), table
        for chunk in wanted:
            self._cache.move_to_end(chunk)
        size = next(iter(loaded.values()))[0].nbytes if loaded else 1
        while len(self._cache) > max(len(wanted), _CACHE_BYTES // size):
            self._cache.popitem(last=False)
        return loaded

    def _start_read(self, chunk: int) -> tuple[int, Any, np.ndarray]:
        """Starts to read a chunk: its shard's number, the future, and the shard's translation."""
        number = int(np.searchsorted(self._ends_in_chunks, chunk, side="right"))
        if number not in self._shards:
            record = self._store.record(number)
            table = self._translate(record).astype(np.int32)
            self._shards[number] = self._store.tokens(number, record), table
        array, table = self._shards[number]
        before = int(self._ends_in_chunks[number - 1]) if number else 0
        begin = (chunk - before) * CHUNK
        return number, array[begin : min(begin + CHUNK, array.shape[0])].read(), table


# Token ids of a text, in memory or packed.
TokenIds: TypeAlias = Integer[np.ndarray, " tokens"] | StoreTokens
