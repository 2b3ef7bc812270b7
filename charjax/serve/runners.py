"""How a model is run for several texts: in one batch, or one request after another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Int

from charjax.inference.groups import is_batch_invariant
from charjax.inference.load import TrainedModel
from charjax.inference.sampler import Sampler
from charjax.inference.slots import SlotBatch
from charjax.serve.jobs import Choice, Job
from charjax.serve.schemas import MAX_LOGPROBS
from charjax.serve.text import TokenChunk
from charjax.serve.turns import MAX_JOBS, TurnRunner, row_tokens

_SIZES = (8, 64)  # rows of the batches: a few texts need not wait for a step of many rows
# Steps of a dispatch: before the first character of a text, later, and in long prompts.
_SHORT, _LONG, _READING = 8, 64, 256
_YOUNG = 128  # tokens of a text that may still move to the large batch


Positions: TypeAlias = Int[np.ndarray, " time"]
Ids: TypeAlias = Int[np.ndarray, " sampled"]


class SlotRunner:
    """Texts of any requests as rows of one batch; a row is free once its text is done.

    It needs matmuls that give a row the same bits whatever is in the others
    (`charjax.inference.groups.is_batch_invariant`).
    """

    def __init__(self, sampler: Sampler, num_top: int | None) -> None:
        """Takes a model.

        Args:
          sampler: of the model.
          num_top: how many of the likeliest tokens to compute; None: no log-probabilities.
        """
        self._batches: list[tuple[SlotBatch, list[Choice | None]]] = [
            (SlotBatch(sampler, size, num_top=num_top), [None] * size) for size in _SIZES
        ]
        # By id() of a text: how many tokens it must read before it samples, until it does; the
        # position of its next token; the tokens that it has sampled, while they are few.
        self._unread: dict[int, int] = {}
        self._position: dict[int, int] = {}
        self._sampled: dict[int, Ids] = {}

    @property
    def num_texts(self) -> int:
        """How many texts are written."""
        return sum(text is not None for _, texts in self._batches for text in texts)

    def has_place(self) -> bool:
        """Whether a row is free."""
        return self._with_place() is not None

    def start(self, job: Job) -> None:
        """Puts the text into a free row; see `has_place`."""
        (text,) = job
        place = self._with_place()
        assert place is not None
        batch, texts = place
        slot = texts.index(None)
        batch.start(slot, text.prompt.ids, text.writing.sampling, number=text.number)
        texts[slot] = text
        self._unread[id(text)] = text.prompt.ids.size - 1
        self._position[id(text)] = 1 - text.prompt.ids.size
        self._sampled[id(text)] = np.empty(0, np.int32)

    def _with_place(self) -> tuple[SlotBatch, list[Choice | None]] | None:
        """The smallest batch with a free row, but none below the largest that has texts.

        A step of both batches takes longer than one of the large batch, which has the rows.
        """
        in_use = [any(texts) for _, texts in self._batches]
        largest = max((i for i, used in enumerate(in_use) if used), default=0)
        return next((place for place in self._batches[largest:] if None in place[1]), None)

    def advance(self) -> None:
        """One dispatch of every batch that has texts."""
        self._gather()
        steps = self._steps()
        for batch, texts in self._batches:
            self._free(batch, texts)
            if any(texts):
                sampled, positions = batch.advance(steps)
                for slot, text in enumerate(texts):
                    if text:
                        self._read_row(text, row_tokens(sampled, slot, text), positions[slot])
                self._free(batch, texts)

    def _gather(self) -> None:
        """Moves young texts to the large batch if that has texts, so that one batch runs.

        The large batch reads their tokens again, which is why old texts stay where they are.
        """
        *small, (large, rows) = self._batches
        if not any(rows):
            return
        for batch, texts in small:
            for slot, text in enumerate(texts):
                if text is None or id(text) not in self._sampled or None not in rows:
                    continue
                batch.free(slot)
                texts[slot] = None
                slot, sampled = rows.index(None), self._sampled[id(text)]
                ids, writing = text.prompt.ids, text.writing
                large.start(slot, ids, writing.sampling, number=text.number, sampled=sampled)
                rows[slot] = text
                self._unread[id(text)] = ids.size - 1 + sampled.size

    def stop(self) -> list[Choice]:
        """Frees all rows; returns the texts."""
        stopped = [text for _, texts in self._batches for text in texts if text]
        for text in stopped:
            text.done = True
        for batch, texts in self._batches:
            self._free(batch, texts)
        return stopped

    def warm_up(self) -> None:
        """Compiles what requests without controls need."""
        for batch, _ in self._batches:
            for steps in (_SHORT, _LONG, _READING):
                batch.advance(steps)

    def _steps(self) -> int:
        """As many as do not delay the first character of a text."""
        least = min(self._unread.values(), default=_LONG)
        if least >= _READING and len(self._unread) == self.num_texts:
            return _READING
        return _LONG if least >= _LONG else _SHORT

    def _read_row(self, text: Choice, tokens: TokenChunk, positions: Positions) -> None:
        left = self._unread.pop(id(text), 0) - positions.size
        if left >= 0:
            self._unread[id(text)] = left
        new = int(np.searchsorted(positions, self._position[id(text)]))  # others: read before
        tokens, positions = tokens.part(new, positions.size), positions[new:]
        self._position[id(text)] += positions.size
        if id(text) in self._sampled:
            sampled = np.append(self._sampled.pop(id(text)), tokens.ids[positions >= 0])
            if sampled.size <= _YOUNG:
                self._sampled[id(text)] = sampled
        forced = int(np.searchsorted(positions, 0))  # tokens of the prompt
        text.read(tokens.part(0, forced), tokens.part(forced, positions.size))

    def _free(self, batch: SlotBatch, texts: list[Choice | None]) -> None:
        """Frees the rows of texts that are done or given up."""
        for slot, text in enumerate(texts):
            if text and text.is_given_up:
                batch.free(slot)
                texts[slot] = None
                for by_text in (self._unread, self._position, self._sampled):
                    by_text.pop(id(text), None)


class ModelRunner:
    """Runs one model for all requests.

    Attributes:
      is_shared: whether requests run in one batch.
    """

    def __init__(self, trained: TrainedModel) -> None:
        """Takes a model; `warm_up` compiles its programs."""
        vocab = trained.vocab
        sampler = Sampler(
            trained.config.model, trained.params, masked=vocab.unk_id, exempt=vocab.boundary_id
        )
        self.is_shared = is_batch_invariant(trained.config.model)
        num_top = min(MAX_LOGPROBS, len(vocab))
        self._turns = TurnRunner(sampler)
        self._slots = (
            {wants: SlotRunner(sampler, num_top if wants else None) for wants in (False, True)}
            if self.is_shared
            else {}
        )

    @property
    def capacity(self) -> int:
        """How many texts can be written at the same time, whatever their age."""
        return max(_SIZES) if self.is_shared else MAX_JOBS

    @property
    def num_texts(self) -> int:
        """How many texts are written."""
        return sum(runner.num_texts for runner in self._runners)

    @property
    def _runners(self) -> list[SlotRunner | TurnRunner]:
        return [*self._slots.values(), self._turns]

    def split(self, texts: Sequence[Choice]) -> list[Job]:
        """The texts of one request as jobs: each alone, or the samples of a prompt together."""
        if texts and self._runner(texts[0]) is not self._turns:
            return [[text] for text in texts]
        groups = itertools.groupby(texts, key=lambda text: id(text.prompt))
        return [list(group) for _, group in groups]

    def has_place(self, job: Job) -> bool:
        """Whether the job can start."""
        return self._runner(job[0]).has_place()

    def start(self, job: Job) -> None:
        """Adds the texts to those that are written."""
        self._runner(job[0]).start(job)

    def advance(self) -> None:
        """Writes some more tokens of every text, and drops those that are done or given up."""
        for runner in self._runners:
            runner.advance()

    def stop(self) -> list[Choice]:
        """Drops all texts; returns them."""
        return [text for runner in self._runners for text in runner.stop()]

    def warm_up(self) -> None:
        """Compiles the programs of requests without controls."""
        for runner in self._slots.values():
            runner.warm_up()

    def _runner(self, text: Choice) -> SlotRunner | TurnRunner:
        if not self._slots or text.writing.copies:
            return self._turns
        return self._slots[text.writing.num_top is not None]
