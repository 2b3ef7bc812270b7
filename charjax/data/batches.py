"""Batches as a pure function of (ids, seed, step): the step is the only cursor there is."""

from __future__ import annotations

import abc
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from charjax.config import DataConfig
from charjax.errors import InputError

_ALL = slice(None)

# The independent uses of a seed here. Never renumber: seeds would change meaning.
_ORDER, _OFFSET = 0, 1


class Batch(NamedTuple):
    """What one training step sees.

    Attributes:
      inputs: int32, the symbols read.
      targets: int32, the symbol after each input.
      mask: which targets count in the loss.
      fresh: which lanes start from a zero carry.
    """

    inputs: Int[np.ndarray, "batch time"]
    targets: Int[np.ndarray, "batch time"]
    mask: Bool[np.ndarray, "batch time"]
    reset: Bool[np.ndarray, " batch"]


class Part(NamedTuple):
    """A contiguous part of a text: its ids, and the offsets at which documents begin."""

    ids: Int[np.ndarray, " symbols"]
    starts: Int[np.ndarray, " documents"]


class Split(NamedTuple):
    """The three parts of a text, in its order."""

    train: Part
    val: Part
    test: Part


class Batches(abc.ABC):
    """The batch of every step of a run, without end: epochs follow each other.

    Attributes:
      steps_per_epoch: batches in an epoch.
      chars_per_epoch: targets that count, over an epoch.
      windows: windows in the text, or lanes of a stream.
    """

    steps_per_epoch: int
    chars_per_epoch: int
    windows: int

    @abc.abstractmethod
    def __call__(self, step: int, rows: slice = _ALL) -> Batch:
        """The batch of a step, counted from 0 over all epochs, or only some rows of it."""


def split(
    ids: Int[np.ndarray, " symbols"],
    starts: Int[np.ndarray, " documents"],
    fractions: tuple[float, ...],
) -> Split:
    """Cuts a text into train, validation and test: views, contiguous, nothing left out.

    One document is cut at the symbol; several are kept whole, and cut at the boundary
    nearest to it.

    Args:
      ids: the symbols of the text.
      starts: where documents begin, rising from 0.
      fractions: of train, validation and test; they add up to 1.

    Raises:
      InputError: a part would be empty though its fraction is not 0.
    """
    n, (train, val, test) = len(ids), fractions
    total = train + val + test  # not quite 1 in floating point
    cuts = np.array([int(n * (train / total)), int(n * ((train + val) / total))])
    if len(starts) > 1:
        boundaries = np.append(starts, n)
        cuts = boundaries[[np.abs(boundaries - cut).argmin() for cut in cuts]]
    edges = [0, *cuts.tolist(), n]
    parts = [_part(ids, starts, *edges[i : i + 2]) for i in range(3)]
    for name, part, fraction in zip(Split._fields, parts, fractions, strict=True):
        if fraction and not part.ids.size:
            raise InputError(
                f"config.data.split={fractions}: the {name} part of {n} characters in "
                f"{len(starts)} documents is empty; give more text or a larger fraction"
            )
    return Split(*parts)


def _part(ids: np.ndarray, starts: np.ndarray, begin: int, end: int) -> Part:
    inside = starts[(starts > begin) & (starts < end)] - begin
    return Part(ids[begin:end], np.concatenate([[0] * (end > begin), inside]).astype(np.int64))


def make_batches(
    config: DataConfig,
    ids: Int[np.ndarray, " symbols"],
    starts: Int[np.ndarray, " documents"],
    seed: int,
) -> Batches:
    """The batches that the config asks for.

    Args:
      config: `batching`, `batch_size`, `seq_len`, `stride`, `targets`, `keep_partial`,
        `stateful`.
      ids: the symbols of the text.
      starts: where documents begin, rising from 0.
      seed: of the order of windows, or of the offsets of a stream.

    Raises:
      InputError: the text is too short for one batch.
    """
    if config.batching == "stream":
        return StreamBatches(config, ids, seed)
    return WindowBatches(config, ids, starts, seed)


class StreamBatches(Batches):
    """Contiguous lanes, each continued from batch to batch, for a carry that is kept.

    The lanes lie end to end in the text, and document boundaries do not interrupt them.
    What is left over at the end, at most batch_size * seq_len symbols, fills no batch;
    so that it is not the same in each epoch, every epoch after the first begins at
    another offset, drawn from (seed, epoch), and goes around the end of the text.
    """

    def __init__(self, config: DataConfig, ids: Int[np.ndarray, " symbols"], seed: int) -> None:
        self._ids, self._seed = ids, seed
        self._shape = (config.batch_size, config.seq_len)
        batch_chars = config.batch_size * config.seq_len
        self.steps_per_epoch = (len(ids) - 1) // batch_chars
        if self.steps_per_epoch < 1:
            raise InputError(
                f"the text has {len(ids)} characters, but one batch takes {batch_chars + 1} "
                f"(config.data.batch_size={config.batch_size} times seq_len={config.seq_len}, "
                "plus 1); make these smaller or give more text"
            )
        self.chars_per_epoch = self.steps_per_epoch * batch_chars
        self.windows = config.batch_size

    def __call__(self, step: int, rows: slice = _ALL) -> Batch:
        """The next seq_len symbols of each lane; fresh at an epoch's first step."""
        epoch, chunk = divmod(step, self.steps_per_epoch)
        lanes, length = self._shape
        lane_starts = np.arange(lanes)[rows] * (self.steps_per_epoch * length)
        first = self._offset(epoch) + lane_starts + chunk * length
        symbols = _gather(self._ids, first, length + 1)
        mask, reset = np.ones((len(first), length), bool), np.full(len(first), chunk == 0)
        return Batch(symbols[:, :-1], symbols[:, 1:], mask, reset)

    def _offset(self, epoch: int) -> int:
        return int(_rng(self._seed, _OFFSET, epoch).integers(len(self._ids))) if epoch else 0


class WindowBatches(Batches):
    """Windows of seq_len inputs and one more target, shuffled anew in each epoch.

    No window crosses a document boundary. Disjoint windows (`windows`) are those whose
    stride is their whole length of seq_len + 1; `sliding` ones begin at every `stride`.
    """

    def __init__(
        self,
        config: DataConfig,
        ids: Int[np.ndarray, " symbols"],
        starts: Int[np.ndarray, " documents"],
        seed: int,
    ) -> None:
        self._ids, self._starts, self._seed = ids, starts, seed
        self._batch_size, self._seq_len = config.batch_size, config.seq_len
        self._stateful = config.stateful
        self._stride = config.stride if config.batching == "sliding" else config.seq_len + 1
        lengths = np.diff(np.append(starts, len(ids)))
        # As many as range(0, length - seq_len, stride) of each document.
        counts = np.maximum(0, -((config.seq_len - lengths) // self._stride))
        self._ends = np.cumsum(counts)  # windows up to and with each document
        self.windows = int(counts.sum())
        whole, rest = divmod(self.windows, config.batch_size)
        self.steps_per_epoch = whole + (config.keep_partial and rest > 0)
        if self.steps_per_epoch < 1:
            raise InputError(_too_few(config, self.windows, lengths))
        self._columns = np.arange(config.seq_len) >= (
            config.seq_len - 1 if config.targets == "last" else 0
        )
        used = self.windows if config.keep_partial else whole * config.batch_size
        self.chars_per_epoch = used * int(self._columns.sum())
        self._order = functools.lru_cache(maxsize=1)(self._permutation)

    def __call__(self, step: int, rows: slice = _ALL) -> Batch:
        """The step's windows; rows that a partial batch lacks are masked out."""
        epoch, position = divmod(step, self.steps_per_epoch)
        begin = position * self._batch_size
        chosen = self._order(epoch)[begin : begin + self._batch_size]
        live = (np.arange(self._batch_size) < len(chosen))[rows]
        first = self._first_symbols(np.pad(chosen, (0, self._batch_size - len(chosen)))[rows])
        symbols = _gather(self._ids, first, self._seq_len + 1)
        mask = live[:, None] & self._columns
        reset = np.full(len(first), not self._stateful)
        return Batch(symbols[:, :-1], symbols[:, 1:], mask, reset)

    def _first_symbols(self, windows: np.ndarray) -> np.ndarray:
        """Where windows, numbered through the text, begin."""
        document = np.searchsorted(self._ends, windows, side="right")
        before = np.append(0, self._ends)[document]
        first: np.ndarray = self._starts[document] + (windows - before) * self._stride
        return first

    def _permutation(self, epoch: int) -> np.ndarray:
        order = np.arange(self.windows, dtype=np.int32)
        _rng(self._seed, _ORDER, epoch).shuffle(order)
        return order


def _gather(ids: np.ndarray, first: np.ndarray, length: int) -> np.ndarray:
    """int32 [batch, length]: the symbols from each first one on, around the text's end."""
    symbols: np.ndarray = ids[(first[:, None] + np.arange(length)) % len(ids)]
    return symbols.astype(np.int32, copy=False)


def _rng(seed: int, use: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, use, epoch])))


def _too_few(config: DataConfig, windows: int, lengths: np.ndarray) -> str:
    if windows == 0:
        return (
            f"the longest document has {lengths.max(initial=0)} characters, but one window takes "
            f"{config.seq_len + 1} (config.data.seq_len={config.seq_len}, plus 1); "
            "make seq_len smaller or give more text"
        )
    return (
        f"the text of {lengths.sum()} characters has {windows} windows of {config.seq_len + 1}, "
        f"but one batch takes config.data.batch_size={config.batch_size}; make it smaller, "
        "set config.data.keep_partial=True or give more text"
    )
