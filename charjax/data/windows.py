"""Windows: the parts of a text that `charjax.data.batches` shuffles and puts into batches."""

from __future__ import annotations

import abc

import numpy as np

from charjax.config import DataConfig
from charjax.data.splits import TokenSplit


class Windows(abc.ABC):
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

    @abc.abstractmethod
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
