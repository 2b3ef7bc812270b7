"""Training batches: each a pure function of the token ids, the seed and the step."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from charjax.config import DataConfig
from charjax.errors import InputError

_ALL = slice(None)

# Random streams, derived from the seed. Renumbering them would change the data order of old runs.
_ORDER, _OFFSET = 0, 1


class Batch(NamedTuple):
    """The input of one training step.

    Attributes:
      inputs: int32 token ids.
      targets: int32, the token after each input.
      mask: which targets count in the loss.
      reset: which sequences start from a zero carry.
    """

    inputs: Int[np.ndarray, "batch time"]
    targets: Int[np.ndarray, "batch time"]
    mask: Bool[np.ndarray, "batch time"]
    reset: Bool[np.ndarray, " batch"]


class TokenSplit(NamedTuple):
    """A contiguous split of a text: its token ids, and the positions where documents start."""

    ids: Int[np.ndarray, " tokens"]
    document_starts: Int[np.ndarray, " documents"]


class Splits(NamedTuple):
    """The splits of a text, in the order of the text."""

    train: TokenSplit
    val: TokenSplit
    test: TokenSplit


class Batches(abc.ABC):
    """The training batch of every step, over any number of epochs.

    Attributes:
      steps_per_epoch: batches in an epoch.
      chars_per_epoch: targets that count in the loss, over an epoch.
      num_sequences: the windows of the text; the rows of a stream.
    """

    steps_per_epoch: int
    chars_per_epoch: int
    num_sequences: int

    @abc.abstractmethod
    def __call__(self, step: int, rows: slice = _ALL) -> Batch:
        """The batch of a step, counted from 0 over all epochs, or a slice of its rows."""


def split(
    ids: Int[np.ndarray, " tokens"],
    document_starts: Int[np.ndarray, " documents"],
    fractions: tuple[float, ...],
) -> Splits:
    """Splits a text into train, validation and test: contiguous views that cover all of it.

    A single document is cut exactly at the fractions, several documents at the document
    boundaries nearest to them.

    Args:
      ids: the token ids of the text.
      document_starts: where documents start, rising from 0.
      fractions: of train, validation and test; they add up to 1.

    Raises:
      InputError: a split is empty although its fraction is not 0.
    """
    n, (train, val, test) = len(ids), fractions
    total = train + val + test  # not quite 1 in floating point
    cuts = np.array([int(n * (train / total)), int(n * ((train + val) / total))])
    if len(document_starts) > 1:
        boundaries = np.append(document_starts, n)
        cuts = boundaries[[np.abs(boundaries - cut).argmin() for cut in cuts]]
    edges = [0, *cuts.tolist(), n]
    splits = Splits(*(_cut(ids, document_starts, *edges[i : i + 2]) for i in range(3)))
    for name, part, fraction in zip(Splits._fields, splits, fractions, strict=True):
        if fraction and not part.ids.size:
            raise InputError(
                f"config.data.split={fractions}: the {name} split of {n} characters in "
                f"{len(document_starts)} documents is empty; give more text or a larger fraction"
            )
    return splits


def _cut(ids: np.ndarray, document_starts: np.ndarray, begin: int, end: int) -> TokenSplit:
    """The tokens from `begin` to `end`; a document starts at the first one, if there is any."""
    first = [0] if end > begin else []
    inside = document_starts[(document_starts > begin) & (document_starts < end)] - begin
    return TokenSplit(ids[begin:end], np.concatenate([first, inside]).astype(np.int64))


class StreamBatches(Batches):
    """Contiguous streams, one a row, that continue from batch to batch, so the carry can be kept.

    The text is cut into `batch_size` rows of equal length, whatever the document boundaries.
    The last tokens, at most batch_size * seq_len, fill no batch and are left out. So that
    they are not the same ones in every epoch, each epoch after the first starts at a random
    offset, drawn from (seed, epoch), and wraps around the end of the text.
    """

    def __init__(self, config: DataConfig, text: TokenSplit, seed: int) -> None:
        """See `make_batches`."""
        self._ids, self._seed = text.ids, seed
        self._batch_size, self._seq_len = config.batch_size, config.seq_len
        batch_chars = config.batch_size * config.seq_len
        self.steps_per_epoch = (len(text.ids) - 1) // batch_chars
        if self.steps_per_epoch < 1:
            raise InputError(
                f"the text has {len(text.ids)} characters, but one batch takes {batch_chars + 1} "
                f"(config.data.batch_size={config.batch_size} times seq_len={config.seq_len}, "
                "plus 1); make these smaller or give more text"
            )
        self.chars_per_epoch = self.steps_per_epoch * batch_chars
        self.num_sequences = config.batch_size

    def __call__(self, step: int, rows: slice = _ALL) -> Batch:
        """The next seq_len tokens of each row; the carry resets at an epoch's first step."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        row_starts = np.arange(self._batch_size)[rows] * (self.steps_per_epoch * self._seq_len)
        first = self._offset(epoch) + row_starts + step_of_epoch * self._seq_len
        tokens = _gather(self._ids, first, self._seq_len + 1)
        mask = np.ones((len(first), self._seq_len), bool)
        reset = np.full(len(first), step_of_epoch == 0)
        return Batch(tokens[:, :-1], tokens[:, 1:], mask, reset)

    def _offset(self, epoch: int) -> int:
        return int(_rng(self._seed, _OFFSET, epoch).integers(len(self._ids))) if epoch else 0


class WindowBatches(Batches):
    """Disjoint windows of seq_len + 1 tokens within documents, reshuffled in every epoch."""

    def __init__(self, config: DataConfig, text: TokenSplit, seed: int) -> None:
        """See `make_batches`."""
        self._config, self._text, self._seed = config, text, seed
        lengths = np.diff(np.append(text.document_starts, len(text.ids)))
        # As many as range(0, length - seq_len, stride) of each document.
        counts = np.maximum(0, -((config.seq_len - lengths) // self._stride))
        self._window_ends = np.cumsum(counts)  # windows up to and with each document
        self.num_sequences = int(counts.sum())
        num_full, rest = divmod(self.num_sequences, config.batch_size)
        self.steps_per_epoch = num_full + int(config.keep_partial and rest > 0)
        if self.steps_per_epoch < 1:
            raise InputError(_too_few(config, self.num_sequences, lengths))
        num_used = self.num_sequences if config.keep_partial else num_full * config.batch_size
        self.chars_per_epoch = num_used * (1 if config.targets == "last" else config.seq_len)
        self._order = functools.lru_cache(maxsize=1)(self._shuffled)

    @property
    def _stride(self) -> int:
        """Tokens between the starts of neighbouring windows of a document."""
        return self._config.seq_len + 1

    def __call__(self, step: int, rows: slice = _ALL) -> Batch:
        """The step's windows; the missing rows of a partial batch are masked out."""
        size, length = self._config.batch_size, self._config.seq_len
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        windows = self._order(epoch)[step_of_epoch * size : (step_of_epoch + 1) * size]
        first = self._window_starts(np.pad(windows, (0, size - len(windows)))[rows])
        tokens = _gather(self._text.ids, first, length + 1)
        first_target = length - 1 if self._config.targets == "last" else 0
        is_window = (np.arange(size) < len(windows))[rows]
        mask = is_window[:, None] & (np.arange(length) >= first_target)
        reset = np.full(len(first), not self._config.stateful)
        return Batch(tokens[:, :-1], tokens[:, 1:], mask, reset)

    def _window_starts(self, windows: np.ndarray) -> np.ndarray:
        """The positions in the text of windows, given by their numbers in the order of the text."""
        document = np.searchsorted(self._window_ends, windows, side="right")
        windows_before = np.append(0, self._window_ends)[document]
        offsets = (windows - windows_before) * self._stride
        starts: np.ndarray = self._text.document_starts[document] + offsets
        return starts

    def _shuffled(self, epoch: int) -> np.ndarray:
        order = np.arange(self.num_sequences, dtype=np.int32)
        _rng(self._seed, _ORDER, epoch).shuffle(order)
        return order


class SlidingBatches(WindowBatches):
    """Overlapping windows of seq_len + 1 tokens that start at every `stride` of a document."""

    @property
    def _stride(self) -> int:
        return self._config.stride


# The batching modes by name; `charjax.config.BATCHING_FIELDS` has the config fields of each.
BATCHINGS: dict[str, Callable[[DataConfig, TokenSplit, int], Batches]] = {
    "stream": StreamBatches,
    "windows": WindowBatches,
    "sliding": SlidingBatches,
}


def make_batches(
    config: DataConfig,
    ids: Int[np.ndarray, " tokens"],
    document_starts: Int[np.ndarray, " documents"],
    seed: int,
) -> Batches:
    """The training batches that the config asks for.

    Args:
      config: `batching`, `batch_size`, `seq_len`, `stride`, `targets`, `keep_partial`,
        `stateful`.
      ids: the token ids of the train split.
      document_starts: where documents start, rising from 0.
      seed: of the order of windows, or of the offsets of a stream.

    Raises:
      InputError: the text is too short for one batch.
    """
    return BATCHINGS[config.batching](config, TokenSplit(ids, document_starts), seed)


def _gather(ids: np.ndarray, first: np.ndarray, length: int) -> np.ndarray:
    """int32 [batch, length]: the tokens from each position on, wrapping around the end."""
    tokens: np.ndarray = ids[(first[:, None] + np.arange(length)) % len(ids)]
    return tokens.astype(np.int32, copy=False)


def _rng(seed: int, stream: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream, epoch])))


def _too_few(config: DataConfig, num_windows: int, lengths: np.ndarray) -> str:
    """The message for a text with less than one batch of windows."""
    if num_windows == 0:
        return (
            f"the longest document has {lengths.max(initial=0)} characters, but one window takes "
            f"{config.seq_len + 1} (config.data.seq_len={config.seq_len}, plus 1); "
            "make seq_len smaller or give more text"
        )
    return (
        f"the text of {lengths.sum()} characters has {num_windows} windows of "
        f"{config.seq_len + 1}, but one batch takes config.data.batch_size={config.batch_size}; "
        "make it smaller, set config.data.keep_partial=True or give more text"
    )
