"""Training batches: each a pure function of the token ids, the seed and the step."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Int

from charjax.config import DataConfig
from charjax.data.shuffle import DOCUMENTS, OFFSET, make_order, random_generator
from charjax.data.store_tokens import TokenIds
from charjax.errors import InputError

_ALL = slice(None)


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


class Slices(NamedTuple):
    """Which slices of a text make up a batch: one for each of its rows.

    Attributes:
      starts: position of each first input; before the text's beginning it counts from its end.
      first_targets: the first column whose target counts in the loss.
      end_targets: the column after the last one that does.
      reset: as in `Batch`.
    """

    starts: Int[np.ndarray, " batch"]
    first_targets: Int[np.ndarray, " batch"]
    end_targets: Int[np.ndarray, " batch"]
    reset: Bool[np.ndarray, " batch"]


class TokenSplit(NamedTuple):
    """A contiguous split of a text: its token ids, and the positions where documents start.

    Attributes:
      ids: token ids, in memory or packed.
      document_starts: positions in `ids`, ascending from 0.
      boundary_id: the id of the boundary token, which comes before each document and after the
        last one; None without boundary tokens.
    """

    ids: TokenIds
    document_starts: Int[np.ndarray, " documents"]
    boundary_id: int | None = None

    @property
    def num_targets(self) -> int:
        """How many tokens can be predicted: all but the first, which no token precedes."""
        return max(0, len(self.ids) - 1)


class Splits(NamedTuple):
    """The splits of a text, in the order of the text."""

    train: TokenSplit
    val: TokenSplit
    test: TokenSplit


class Batches(abc.ABC):
    """The training batch of every step, over any number of epochs.

    Attributes:
      ids: the token ids that the batches are slices of.
      config: how they are cut.
      steps_per_epoch: batches in an epoch.
      chars_per_epoch: targets that count in the loss, in an epoch.
      num_sequences: how many windows the text has, or rows the stream has.
      unused_chars: targets of the text that are in no batch of the first epoch.
    """

    ids: TokenIds
    config: DataConfig
    steps_per_epoch: int
    chars_per_epoch: int
    num_sequences: int
    unused_chars: int

    @abc.abstractmethod
    def slices(self, step: int, rows: slice = _ALL) -> Slices:
        """The slices that the batch of a step reads, or those of some of its rows."""

    def __call__(self, step: int, rows: slice = _ALL) -> Batch:
        """The batch of a step, counted from 0 over all epochs, or a slice of its rows."""
        return read_slices(self.ids, self.slices(step, rows), self.config.seq_len)


def read_slices(ids: Any, slices: Slices, length: int) -> Batch:
    """The batch of these slices, around the end of the text where they cross it.

    Host and devices call it alike: with numpy arrays or a packed text, or, in a compiled step, with
    JAX arrays.

    Args:
      ids: all token ids.
      slices: as `Batches.slices` gives them.
      length: inputs of each slice.
    """
    columns = np.arange(length + 1, dtype=np.int32)[None]
    tokens = ids[(slices.starts[:, None] + columns) % len(ids)].astype(np.int32, copy=False)
    columns = columns[:, :-1]
    is_target = (slices.first_targets[:, None] <= columns) & (columns < slices.end_targets[:, None])
    return Batch(tokens[:, :-1], tokens[:, 1:], is_target, slices.reset)


def split(
    ids: TokenIds,
    document_starts: Int[np.ndarray, " documents"],
    fractions: tuple[float, ...],
    boundary_id: int | None = None,
    num_documents: Int[np.ndarray, " splits"] | None = None,
) -> Splits:
    """Splits a text into train, validation and test: contiguous views that cover all of it.

    A single document is cut exactly at the fractions. Several documents are not cut: the splits
    end at the document boundaries that are nearest to the fractions and leave no split empty, or
    have the given numbers of documents.

    Args:
      ids: the token ids of the text.
      document_starts: positions in `ids`, ascending from 0.
      fractions: of train, validation and test; they add up to 1.
      boundary_id: the id of the boundary token, which must be the first and the last of `ids`; the
        one between two splits belongs to both. None without boundary tokens.
      num_documents: how many documents each split has; None: as the fractions say.

    Raises:
      InputError: a split is empty although its fraction is not 0.
    """
    n, (train, val, test) = len(ids) - int(boundary_id is not None), fractions
    total = train + val + test  # 1 up to rounding
    cuts = np.array([int(n * (train / total)), int(n * ((train + val) / total))])
    boundaries = np.append(document_starts, n)
    if num_documents is not None:
        cuts = boundaries[np.cumsum(num_documents)[:2]]
    elif len(document_starts) > 1:
        train_end, val_end = (int(np.abs(boundaries - cut).argmin()) for cut in cuts)
        last = len(document_starts) - (test > 0)
        train_end = max(1, min(train_end, last - (val > 0)))
        cuts = boundaries[[train_end, max(train_end + (val > 0), min(val_end, last))]]
    edges = [0, *cuts.tolist(), n]
    cut = functools.partial(_cut, TokenSplit(ids, document_starts, boundary_id))
    splits = Splits(*(cut(*edges[i : i + 2]) for i in range(3)))
    for name, part, fraction in zip(Splits._fields, splits, fractions, strict=True):
        if fraction and not part.ids.size:
            raise InputError(
                f"config.data.split={fractions}: the {name} split of {n} characters in "
                f"{len(document_starts)} documents is empty; give more text or a larger fraction"
            )
    return splits


def _cut(text: TokenSplit, begin: int, end: int) -> TokenSplit:
    """The split from `begin` to `end`, and the boundary token at `end` if there is one."""
    starts = text.document_starts
    if begin == end:
        return TokenSplit(text.ids[:0], starts[:0], text.boundary_id)
    inside = starts[(starts > begin) & (starts < end)] - begin
    starts = np.concatenate([[0], inside]).astype(np.int64)
    ends_document = text.boundary_id is not None and text.ids[min(end, len(text.ids) - 1)] == (
        text.boundary_id
    )
    return TokenSplit(text.ids[begin : end + int(ends_document)], starts, text.boundary_id)


def random_order(count: int, seed: int) -> Int[np.ndarray, " count"]:
    """A permutation of 0 to count - 1, in which documents are shuffled before the split."""
    return random_generator(seed, DOCUMENTS, 0).permutation(count)


class StreamBatches(Batches):
    """Contiguous streams, one a row, that continue from batch to batch, so the carry can be kept.

    The text is cut into `batch_size` rows of equal length, without regard to documents; the model
    resets the carry at boundary tokens. The last tokens, fewer than batch_size * seq_len, fill no
    batch and are left out. To leave out others in each epoch, all epochs but the first start at a
    random offset, drawn from (seed, epoch), and wrap around the end of the text.
    """

    def __init__(self, config: DataConfig, text: TokenSplit, seed: int) -> None:
        """See `make_batches`."""
        self.config, self._seed = config, seed
        # Where an epoch wraps around, one boundary token between end and beginning is enough.
        ends_document = len(text.ids) > 1 and text.ids[-1] == text.boundary_id
        self.ids = text.ids[:-1] if ends_document else text.ids
        batch_chars = config.batch_size * config.seq_len
        self.steps_per_epoch = text.num_targets // batch_chars
        if self.steps_per_epoch < 1:
            raise InputError(
                f"the train split has {len(text.ids)} characters, but one batch takes "
                f"{batch_chars + 1} (config.data.batch_size={config.batch_size} times "
                f"seq_len={config.seq_len}, plus 1); make these smaller or give more text"
            )
        self.chars_per_epoch = self.steps_per_epoch * batch_chars
        self.num_sequences = config.batch_size
        self.unused_chars = text.num_targets - self.chars_per_epoch

    def slices(self, step: int, rows: slice = _ALL) -> Slices:
        """The next seq_len tokens of each row; the carry resets at an epoch's first step."""
        length = self.config.seq_len
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        row_starts = np.arange(self.config.batch_size)[rows] * (self.steps_per_epoch * length)
        starts = self._offset(epoch) + row_starts + step_of_epoch * length
        zeros = np.zeros(len(starts), np.int64)
        return Slices(starts, zeros, zeros + length, np.full(len(starts), step_of_epoch == 0))

    def _offset(self, epoch: int) -> int:
        return (
            int(random_generator(self._seed, OFFSET, epoch).integers(len(self.ids))) if epoch else 0
        )


class WindowBatches(Batches):
    """Windows of the text, reshuffled in every epoch; `_make_windows` chooses how they are cut."""

    def __init__(self, config: DataConfig, text: TokenSplit, seed: int) -> None:
        """See `make_batches`."""
        self.config, self._text = config, text
        self._windows = self._make_windows(text)
        self.num_sequences = self._windows.count
        num_full, rest = divmod(self.num_sequences, config.batch_size)
        keeps_partial = config.keep_partial or text.boundary_id is not None
        self.steps_per_epoch = num_full + int(keeps_partial and rest > 0)
        if self.steps_per_epoch < 1:
            lengths = np.diff(np.append(text.document_starts, len(text.ids)))
            raise InputError(_too_few(config, self.num_sequences, lengths))
        if text.boundary_id is None:
            targets_per_window = 1 if config.targets == "last" else config.seq_len
            self.chars_per_epoch = self._num_used * targets_per_window
        else:
            self.chars_per_epoch = self._windows.num_targets
        self._order = make_order(config.window_order, self.num_sequences, seed)

    @property
    def ids(self) -> TokenIds:  # type: ignore[override]
        """As in `Batches`."""
        return self._text.ids

    @property
    def _num_used(self) -> int:
        """How many windows the batches of an epoch take."""
        return min(self.num_sequences, self.steps_per_epoch * self.config.batch_size)

    def _make_windows(self, text: TokenSplit) -> Windows:
        """The windows of this batching mode."""
        if text.boundary_id is None:
            return WindowsInDocuments(self.config, text, stride=self.config.seq_len + 1)
        if self.config.targets == "last":
            return WindowsAcrossDocuments(self.config, text, stride=self.config.seq_len)
        return PackedWindows(self.config, text)

    @functools.cached_property
    def unused_chars(self) -> int:  # type: ignore[override]
        """Targets in no batch of the first epoch; a target of overlapping windows counts once."""
        unused = self._order(0, np.arange(self._num_used, self.num_sequences))
        overlap = np.arange(-self._windows.overlap, self._windows.overlap + 1)
        near = np.unique((unused[:, None] + overlap).clip(0, self.num_sequences - 1))
        near_used = np.setdiff1d(near, unused)
        covered = self._num_covered(near) - self._num_covered(near_used)
        return self._text.num_targets - self._windows.num_distinct + covered

    def _num_covered(self, windows: np.ndarray) -> int:
        """How many targets some windows have, in ascending order; each target counts once."""
        first, lengths = self._windows.spans(windows)
        ends = np.maximum.accumulate(np.append(0, first + lengths))
        return int(np.maximum(0, ends[1:] - np.maximum(first, ends[:-1])).sum())

    def slices(self, step: int, rows: slice = _ALL) -> Slices:
        """The windows of the step; a partial batch is filled up with rows that are masked out."""
        size, length = self.config.batch_size, self.config.seq_len
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        end = min((step_of_epoch + 1) * size, self.num_sequences)
        windows = self._order(epoch, np.arange(step_of_epoch * size, end))
        first_target, num_targets = self._windows.spans(
            np.pad(windows, (0, size - len(windows)))[rows]
        )
        # With targets="last" a window ends at its target, else it starts before its first one.
        first = length - 1 if self.config.targets == "last" else 0
        firsts = np.full(len(first_target), first)
        is_window = (np.arange(size) < len(windows))[rows]
        ends = firsts + np.where(is_window, num_targets, 0)
        reset = np.full(len(firsts), not self.config.stateful)
        return Slices(first_target - 1 - firsts, firsts, ends, reset)


class SlidingBatches(WindowBatches):
    """Windows that may overlap: one starts every `stride` tokens of the text or of a document."""

    def _make_windows(self, text: TokenSplit) -> Windows:
        """The windows of this batching mode."""
        kind = WindowsInDocuments if text.boundary_id is None else WindowsAcrossDocuments
        return kind(self.config, text, stride=self.config.stride)


class Windows(Protocol):
    """The windows of a text, numbered in the order of the text.

    Attributes:
      count: how many there are.
      num_targets: how many targets they have together.
      num_distinct: the same where a target of overlapping windows counts once.
      overlap: how many windows before, or after, one may have targets of it.
    """

    count: int
    num_targets: int
    num_distinct: int
    overlap: int

    def spans(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each window number: the position of its first target, and its number of targets."""


class WindowsInDocuments(Windows):
    """Windows of seq_len + 1 tokens, one every `stride` tokens of each document.

    No window crosses documents, so documents shorter than a window have none.
    """

    def __init__(self, config: DataConfig, text: TokenSplit, stride: int) -> None:
        """See `make_batches`."""
        self._config, self._document_starts, self._stride = config, text.document_starts, stride
        lengths = np.diff(np.append(text.document_starts, len(text.ids)))
        # len(range(0, length - seq_len, stride)) for each document.
        counts = np.maximum(0, -((config.seq_len - lengths) // stride))
        self._window_ends = np.cumsum(counts)  # windows in all documents up to this one, inclusive
        self.count = int(counts.sum())
        num_targets = 1 if config.targets == "last" else config.seq_len
        self.num_targets = self.count * num_targets
        distinct = (counts - 1) * min(stride, num_targets) + num_targets
        self.num_distinct = int(distinct[counts > 0].sum())
        self.overlap = (num_targets - 1) // stride

    def spans(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Windows.spans`."""
        document = np.searchsorted(self._window_ends, windows, side="right")
        windows_before = np.append(0, self._window_ends)[document]
        starts = self._document_starts[document] + (windows - windows_before) * self._stride
        if self._config.targets == "last":
            return starts + self._config.seq_len, np.ones(len(windows), np.int64)
        return starts + 1, np.full(len(windows), self._config.seq_len)


class WindowsAcrossDocuments(Windows):
    """Windows, one every `stride` tokens of a text, across documents; the last may be shorter."""

    def __init__(self, config: DataConfig, text: TokenSplit, stride: int) -> None:
        """See `make_batches`."""
        self._stride, self._end = stride, text.num_targets + 1
        self._length = 1 if config.targets == "last" else config.seq_len
        beyond_first = max(0, text.num_targets - self._length)
        self.count = min(-(-beyond_first // stride) + 1, -(-text.num_targets // stride))
        last = min(self._length, text.num_targets - (self.count - 1) * stride)
        others = max(0, self.count - 1)  # of full length
        self.num_targets = others * self._length + last
        self.num_distinct = others * min(stride, self._length) + last
        self.overlap = (self._length - 1) // stride

    def spans(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Windows.spans`."""
        first = 1 + windows.astype(np.int64) * self._stride
        return first, np.minimum(self._length, self._end - first)


class PackedWindows(Windows):
    """Windows that hold as many complete documents as fit, in the order of the text.

    A document longer than a window takes several windows, and the last of them is filled up with
    the documents that follow.
    """

    def __init__(self, config: DataConfig, text: TokenSplit) -> None:
        """See `make_batches`."""
        length, starts = config.seq_len, text.document_starts
        ends = np.append(starts[1:], text.num_targets)
        num_full, rest = np.divmod(ends - starts, length)
        last_start = starts + num_full * length  # of the window with the end of each document
        # The document that starts the next window after each document's last one.
        next_first = np.where(
            rest > 0,
            np.searchsorted(ends, last_start + length, side="right"),
            np.arange(len(starts)) + 1,
        )
        # The documents that start a window.
        chain, document, successors = [], 0, next_first.tolist()
        while document < len(successors):
            chain.append(document)
            document = successors[document]
        first = np.array(chain, np.int64)
        counts = num_full[first] + (rest[first] > 0)
        windows_before = np.cumsum(counts) - counts
        self.count = int(counts.sum())
        # For each window: its first document, and its number among the windows of that document.
        first = np.repeat(first, counts)
        number = np.arange(self.count) - np.repeat(windows_before, counts)
        self._starts = starts[first] + number * length
        last_length = ends[next_first[first] - 1] - self._starts
        self._lengths = np.where(number < num_full[first], length, last_length)
        self.num_targets = self.num_distinct = int(self._lengths.sum())
        self.overlap = 0

    def spans(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Windows.spans`."""
        return self._starts[windows] + 1, self._lengths[windows]


# The batching modes by name; `charjax.config.BATCHING_FIELDS` has the config fields of each.
BATCHINGS: dict[str, Callable[[DataConfig, TokenSplit, int], Batches]] = {
    "stream": StreamBatches,
    "windows": WindowBatches,
    "sliding": SlidingBatches,
}


def make_batches(config: DataConfig, text: TokenSplit, seed: int) -> Batches:
    """The training batches that the config asks for.

    Without boundary tokens no window crosses documents, so short documents are not trained on.
    With boundary tokens every character is: streams, sliding windows and windows with
    `targets=last` run across documents, other windows hold complete documents, and the model
    resets the carry at each boundary.

    Args:
      config: `batching`, `batch_size`, `seq_len`, `stride`, `targets`, `keep_partial`,
        `stateful`.
      text: the train split.
      seed: for the order of windows, or the offsets of a stream.

    Raises:
      InputError: the text is too short for one batch.
    """
    return BATCHINGS[config.batching](config, text, seed)


def _too_few(config: DataConfig, num_windows: int, lengths: np.ndarray) -> str:
    """The message for a text with less than one batch of windows."""
    if num_windows == 0:
        return (
            f"the longest document of the train split has {lengths.max(initial=0)} characters, but "
            f"one window takes {config.seq_len + 1} (config.data.seq_len={config.seq_len}, plus "
            "1); make seq_len smaller or give more text"
        )
    return (
        f"the train split of {lengths.sum()} characters has {num_windows} windows of "
        f"{config.seq_len + 1}, but one batch takes config.data.batch_size={config.batch_size}; "
        "make it smaller, set config.data.keep_partial=True or give more text"
    )
