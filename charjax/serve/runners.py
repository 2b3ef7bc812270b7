"""Continuous batching: the texts of any requests are rows of one batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from charjax.inference.sampling.rows import Sampled
from charjax.inference.sampling.sampler import Sampler
from charjax.inference.sampling.slots import NO_TOKENS, SlotBatch
from charjax.serve.jobs import Choice, Job

_SIZES = (8, 64)  # rows of the batches: a few texts need not wait for a step of many rows
# Steps of a dispatch: before the first character of a text, later, and in long prompts.
_SHORT, _LONG, _READING = 8, 64, 256
_YOUNG = 128  # tokens of a text that may still move to the large batch


@dataclass(eq=False)
class _Row:
    """A text in a row.

    Attributes:
      text: the text.
      unread: tokens that are given and not read yet; negative: the row samples.
      sampled: the text's first tokens, while it is young; then None.
    """

    text: Choice
    unread: int
    sampled: Int[np.ndarray, " sampled"] | None

    def read(self, tokens: Sampled, position: int) -> None:
        """Takes the tokens of a dispatch, from a position of the sample on."""
        self.unread -= tokens.ids.size
        if self.sampled is not None:
            first = max(0, self.sampled.size - position)  # those before were read or are forced
            sampled = np.append(self.sampled, tokens.ids[first:])
            self.sampled = sampled if sampled.size <= _YOUNG else None
        self.text.read(tokens, position)


class _Batch:
    """A batch and the texts in its rows."""

    def __init__(self, sampler: Sampler, size: int, num_top: int | None) -> None:
        self._slots = SlotBatch(sampler, size, num_top=num_top)
        self._rows: list[_Row | None] = [None] * size

    @property
    def rows(self) -> list[_Row]:
        """The rows that have a text."""
        return [row for row in self._rows if row]

    @property
    def has_place(self) -> bool:
        """Whether a row is free."""
        return None in self._rows

    def start(self, text: Choice, sampled: Int[np.ndarray, " sampled"] = NO_TOKENS) -> None:
        """Puts a text, which may have its first tokens, into a free row."""
        slot, ids = self._rows.index(None), text.prompt.ids
        sampling = text.writing.sampling
        self._slots.start(slot, ids, sampling, number=text.number, sampled=sampled)
        self._rows[slot] = _Row(text, ids.size - 1 + sampled.size, sampled)

    def free(self, row: _Row) -> None:
        """Ends what a row writes."""
        slot = self._rows.index(row)
        self._slots.free(slot)
        self._rows[slot] = None

    def free_given_up(self) -> None:
        """Frees the rows whose text is done or given up."""
        for row in self.rows:
            if row.text.is_given_up:
                self.free(row)

    def advance(self, steps: int) -> None:
        """Reads or samples the next tokens in all rows."""
        sampled, positions = self._slots.advance(steps)
        for slot, row in enumerate(self._rows):
            if row:
                row.read(sampled.on_host(slot), int(positions[slot, 0]))


class SlotRunner:
    """Texts of any requests as rows of one batch; a row is free once its text is done.

    It needs matmuls that give a row the same bits whatever is in the others
    (`charjax.inference.sampling.groups.is_batch_invariant`).
    """

    def __init__(self, sampler: Sampler, num_top: int | None) -> None:
        """Takes a model.

        Args:
          sampler: of the model.
          num_top: how many of the likeliest tokens to compute; None: no log-probabilities.
        """
        self._batches = [_Batch(sampler, size, num_top) for size in _SIZES]
        self.capacity = max(_SIZES)  # texts, whatever their age

    @property
    def texts(self) -> list[Choice]:
        """Those that are written."""
        return [row.text for batch in self._batches for row in batch.rows]

    def start(self, job: Job) -> bool:
        """Puts the text into a free row, if there is one.

        That is one of the smallest batch with a free row, but of none below the largest batch that
        has texts: a step of both takes longer than one of the large batch, which has the rows.
        """
        (text,) = job
        largest = max((i for i, batch in enumerate(self._batches) if batch.rows), default=0)
        batch = next((batch for batch in self._batches[largest:] if batch.has_place), None)
        if batch:
            batch.start(text)
        return batch is not None

    def advance(self) -> None:
        """One dispatch of every batch that has texts."""
        for batch in self._batches:
            batch.free_given_up()
        self._gather()
        steps = self._steps()
        for batch in self._batches:
            if batch.rows:
                batch.advance(steps)
                batch.free_given_up()

    def _gather(self) -> None:
        """Moves young texts to the large batch if that has texts, so that one batch runs.

        The large batch reads their tokens again, which is why old texts stay where they are.
        """
        *small, large = self._batches
        if not large.rows:
            return
        for batch in small:
            for row in batch.rows:
                if row.sampled is not None and large.has_place:
                    batch.free(row)
                    large.start(row.text, row.sampled)

    def _steps(self) -> int:
        """As many as do not delay the first character of a text."""
        unread = [row.unread for batch in self._batches for row in batch.rows]
        if unread and min(unread) >= _READING:
            return _READING
        least = min((number for number in unread if number >= 0), default=_LONG)
        return _LONG if least >= _LONG else _SHORT

    def stop(self) -> None:
        """Frees all rows."""
        for batch in self._batches:
            for row in batch.rows:
                batch.free(row)

    def warm_up(self) -> None:
        """Compiles what requests without options need."""
        for batch in self._batches:
            for steps in (_SHORT, _LONG, _READING):
                batch.advance(steps)
