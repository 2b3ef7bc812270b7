"""Windows: the parts of a text that `charjax.data.batches` shuffles and puts into batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from charjax.config import DataConfig
from charjax.data.splits import TokenSplit


@dataclass(frozen=True)
class Windows:
    """The windows of a text, numbered in the order of the text.

    Attributes:
      count: how many there are.
      num_targets: how many targets they have together.
      num_distinct: the same where a target of overlapping windows counts once.
      overlap: how many windows before, or after, one may have targets of it.
      spans: called with window numbers; the position of the first target of each, and its number
        of targets.
    """

    count: int
    num_targets: int
    num_distinct: int
    overlap: int
    spans: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def make_windows(config: DataConfig, text: TokenSplit) -> Windows:
    """The windows that `data.batching=windows` or `sliding` shuffles.

    Without boundary tokens no window crosses documents, and all have `seq_len` + 1 tokens. With
    boundary tokens windows hold complete documents, or, where they slide or have a single target,
    run across documents.
    """
    is_sliding, is_last = config.batching == "sliding", config.targets == "last"
    num_targets = 1 if is_last else config.seq_len
    if text.boundary_id is None:
        stride = config.stride if is_sliding else config.seq_len + 1
        starts = text.document_starts
        first_targets = starts + (config.seq_len if is_last else 1)
        ends = np.append(starts, len(text.ids))[1:]
        return _strided(first_targets, ends, num_targets, stride, are_full=True)
    if is_sliding or is_last:
        stride = config.stride if is_sliding else config.seq_len
        whole = np.array([1]), np.array([text.num_targets + 1])
        return _strided(*whole, num_targets, stride, are_full=False)
    return _complete_documents(config.seq_len, text.document_starts, text.num_targets)


def _strided(
    first_targets: Int64[np.ndarray, " documents"],
    ends: Int64[np.ndarray, " documents"],
    length: int,
    stride: int,
    *,
    are_full: bool,
) -> Windows:
    """Windows of `length` targets, one every `stride` targets of each document.

    Args:
      first_targets: the positions of the first target of each document.
      ends: the positions after the last one.
      length: targets in a window.
      stride: between the starts of windows.
      are_full: whether targets at the end of a document that fill no window are left out; else
        its last window may be shorter.
    """
    num_targets = np.maximum(0, ends - first_targets)
    if are_full:
        counts = np.maximum(0, (num_targets - length) // stride + 1)
    else:
        beyond_first = np.maximum(0, num_targets - length)
        counts = np.minimum(-(-beyond_first // stride) + 1, -(-num_targets // stride))
    up_to = np.cumsum(counts)  # windows in all documents up to each, inclusive
    others = counts[counts > 0] - 1  # of each document's windows, all but the last
    last = np.minimum(length, num_targets[counts > 0] - others * stride)

    def spans(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        document = np.searchsorted(up_to, windows, side="right")
        number = windows - up_to[document] + counts[document]
        first = first_targets[document] + number * stride
        return first, np.minimum(length, ends[document] - first)

    return Windows(
        count=int(counts.sum()),
        num_targets=int((others * length + last).sum()),
        num_distinct=int((others * min(stride, length) + last).sum()),
        overlap=(length - 1) // stride,
        spans=spans,
    )


def _complete_documents(
    length: int, starts: Int64[np.ndarray, " documents"], num_targets: int
) -> Windows:
    """Windows that hold as many complete documents as fit, in the order of the text.

    A document longer than a window takes several windows, and the last of them is filled up with
    the documents that follow.
    """
    ends = np.append(starts[1:], num_targets)
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
    # For each window: its first document, and its number among the windows of that document.
    first = np.repeat(first, counts)
    number = np.arange(len(first)) - np.repeat(windows_before, counts)
    begins = starts[first] + number * length
    last_length = ends[next_first[first] - 1] - begins
    lengths = np.where(number < num_full[first], length, last_length)
    total = int(lengths.sum())
    return Windows(len(first), total, total, 0, lambda w: (begins[w] + 1, lengths[w]))
