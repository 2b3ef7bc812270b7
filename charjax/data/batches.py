"""Training batches: each a pure function of the token ids, the seed and the step."""

from __future__ import annotations

import abc
import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from charjax.config import DataConfig
from charjax.data.packed.tokens import TokenIds
from charjax.data.shuffle import OFFSET, make_order, random_generator
from charjax.data.splits import TokenSplit
from charjax.data.windows import make_windows
from charjax.errors import InputError
from charjax.runtime.display import counted
from charjax.schema import check_integer, parse


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
    def slices(self, step: int, rows: slice) -> Slices:
        """The slices that the batch of a step reads, or those of some of its rows."""

    def __call__(self, step: int, rows: slice = slice(None)) -> Batch:
        """The batch of a step, counted from 0 over all epochs, or a slice of its rows.

        Raises:
          InputError: the step is no integer of Python, numpy or JAX, or below 0.
        """
        step = check_integer("step", step, 0, sys.maxsize)
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
                f"the train split has {counted(len(text.ids), 'character')}, but one batch takes "
                f"{batch_chars + 1:,} (config.data.batch_size={config.batch_size} times "
                f"seq_len={config.seq_len}, plus 1); make these smaller or give more text"
            )
        self.chars_per_epoch = self.steps_per_epoch * batch_chars
        self.num_sequences = config.batch_size
        self.unused_chars = text.num_targets - self.chars_per_epoch

    def slices(self, step: int, rows: slice) -> Slices:
        """The next seq_len tokens of each row; the carry resets at an epoch's first step."""
        length = self.config.seq_len
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        row_starts = np.arange(self.config.batch_size)[rows] * (self.steps_per_epoch * length)
        offset = 0
        if epoch:
            offset = int(random_generator(self._seed, OFFSET, epoch).integers(len(self.ids)))
        starts = offset + row_starts + step_of_epoch * length
        zeros = np.zeros(len(starts), np.int64)
        return Slices(starts, zeros, zeros + length, np.full(len(starts), step_of_epoch == 0))


class WindowBatches(Batches):
    """Windows of the text, reshuffled in every epoch."""

    def __init__(self, config: DataConfig, text: TokenSplit, seed: int) -> None:
        """See `make_batches`."""
        self.config, self.ids, self._text_targets = config, text.ids, text.num_targets
        self._windows = make_windows(config, text)
        self.num_sequences = self._windows.count
        num_full, rest = divmod(self.num_sequences, config.batch_size)
        keeps_partial = config.keep_partial or text.boundary_id is not None
        self.steps_per_epoch = num_full + int(keeps_partial and rest > 0)
        if self.steps_per_epoch < 1:
            lengths = np.diff(text.document_starts, append=len(text.ids))
            raise InputError(
                f"the train split has {counted(self.num_sequences, 'window')} of "
                f"{config.seq_len + 1} characters (config.data.seq_len={config.seq_len}, plus 1; "
                f"its longest document has {lengths.max(initial=0):,}), but one batch takes "
                f"config.data.batch_size={config.batch_size}; make these smaller, set "
                "config.data.keep_partial=True or give more text"
            )
        # Windows that an epoch leaves out are of full length, as all are then.
        full_length = 1 if config.targets == "last" else config.seq_len
        self.chars_per_epoch = min(self._num_used * full_length, self._windows.num_targets)
        self._order = make_order(config.window_order, self.num_sequences, seed)

    @property
    def _num_used(self) -> int:
        """How many windows the batches of an epoch take."""
        return min(self.num_sequences, self.steps_per_epoch * self.config.batch_size)

    @functools.cached_property
    def unused_chars(self) -> int:  # type: ignore[override]
        """Targets in no batch of the first epoch; a target of overlapping windows counts once."""
        unused = self._order(0, np.arange(self._num_used, self.num_sequences))
        overlap = np.arange(-self._windows.overlap, self._windows.overlap + 1)
        near = np.unique((unused[:, None] + overlap).clip(0, self.num_sequences - 1))
        near_used = np.setdiff1d(near, unused)
        covered = self._num_covered(near) - self._num_covered(near_used)
        return self._text_targets - self._windows.num_distinct + covered

    def _num_covered(self, windows: np.ndarray) -> int:
        """How many targets some windows have, in ascending order; each target counts once."""
        first, lengths = self._windows.spans(windows)
        ends = np.maximum.accumulate(np.append(0, first + lengths))
        return int(np.maximum(0, ends[1:] - np.maximum(first, ends[:-1])).sum())

    def slices(self, step: int, rows: slice) -> Slices:
        """The windows of the step; a partial batch is filled up with rows that are masked out."""
        size, length = self.config.batch_size, self.config.seq_len
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        end = min((step_of_epoch + 1) * size, self.num_sequences)
        windows = self._order(epoch, np.arange(step_of_epoch * size, end))
        positions, num_targets = self._windows.spans(
            np.pad(windows, (0, size - len(windows)))[rows]
        )
        # With targets="last" a window ends at its target, else it starts before its first one.
        first_target = length - 1 if self.config.targets == "last" else 0
        first_targets = np.full(len(positions), first_target)
        is_window = (np.arange(size) < len(windows))[rows]
        end_targets = first_targets + np.where(is_window, num_targets, 0)
        reset = np.full(len(positions), not self.config.stateful)
        return Slices(positions - 1 - first_targets, first_targets, end_targets, reset)


# The batching modes by name; `charjax.config.BATCHING_FIELDS` has the config fields of each.
BATCHINGS: dict[str, Callable[[DataConfig, TokenSplit, int], Batches]] = {
    "stream": StreamBatches,
    "windows": WindowBatches,
    "sliding": WindowBatches,
}


def make_batches(config: DataConfig, text: TokenSplit, seed: int) -> Batches:
    """The training batches that the config asks for.

    Without boundary tokens no window crosses documents, so short documents are not trained on.
    With boundary tokens every character is: streams, sliding windows and windows with
    `targets=last` run across documents, other windows hold complete documents, and the model
    resets the carry at each boundary.

    Args:
      config: `batching`, `batch_size`, `seq_len`, `stride`, `targets`, `keep_partial`,
        `stateful`, `window_order`.
      text: the train split.
      seed: for the order of windows, or the offsets of a stream.

    Raises:
      InputError: the text is too short for one batch, a field is outside its limits, or the seed
        no integer of 0 or more.
    """
    seed = check_integer("seed", seed, 0, sys.maxsize)
    config = parse(DataConfig, config, "config.data")
    return BATCHINGS[config.batching](config, text, seed)
