"""Continuous batching: samples start and end at different times in the rows of one batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from charjax.data.tokens.ids import check_ids
from charjax.inference.options import Sampling
from charjax.inference.sampling.loop import Program, compiled_loop
from charjax.inference.sampling.row_options import RowOptions
from charjax.inference.sampling.rows import Rows, Sampled, Starts, replace_rows, start_rows
from charjax.inference.sampling.sampler import Sampler, as_prompt
from charjax.model.decode_weights import DecodeWeights

# The position of a slot in which nothing runs.
IDLE = -(2**29)
_IDLE_SAMPLING = Sampling(temperature=0.0)
NO_TOKENS = np.empty(0, np.int32)


@dataclass
class _Slot:
    """What one slot runs.

    Attributes:
      sampling: how its tokens are chosen.
      number: of its sample.
      unread: tokens that are given and were not read yet.
      position: of the next token in the sample; negative in the prompt.
      is_new: whether its row was not started yet.
    """

    sampling: Sampling
    number: int
    unread: Int[np.ndarray, " n"]
    position: int
    is_new: bool = True

    def next_steps(self, steps: int) -> tuple[Int[np.ndarray, " steps"], Int[np.ndarray, " steps"]]:
        """The forced tokens (-1: sampled) and the positions of the next steps."""
        forced = np.full(steps, -1, np.int32)
        read = self.unread[:steps]
        forced[: read.size] = read
        positions = self.position + np.arange(steps, dtype=np.int32)
        self.unread = self.unread[steps:]
        self.position += steps
        return forced, positions


class SlotBatch:
    """A batch of a fixed size, in whose slots samples start and end at any time.

    Where `is_batch_invariant` holds, each is the sample that `Sampler` gives for the same prompt,
    options and number. Elsewhere the matmuls of another batch size may round differently.

    Two programs are compiled for each number of steps: one without options, for when no slot has
    any, and one with all of them.
    """

    def __init__(self, sampler: Sampler, size: int, *, num_top: int | None = None) -> None:
        """Makes a batch of idle slots.

        Args:
          sampler: the model.
          size: number of slots.
          num_top: as for `Sampler.run`.
        """
        self._sampler, self._program = sampler, Program(sampler.config, num_top)
        self._slots: list[_Slot | None] = [None] * size
        self._options: RowOptions | None = None
        self._rows = self._start(_idle_starts(size))

    def start(
        self,
        slot: int,
        prompt: Int[np.ndarray, " prompt"],
        sampling: Sampling,
        *,
        number: int = 0,
        sampled: Int[np.ndarray, " sampled"] = NO_TOKENS,
    ) -> None:
        """Starts a sample in a slot, instead of what runs there.

        Args:
          slot: from 0 to the size of the batch - 1.
          prompt: ids to read first, at least one.
          sampling: how tokens are chosen.
          number: which sample of its seed, from 0.
          sampled: the sample's first tokens, where another batch sampled them; they are read
            after the prompt, at their positions.

        Raises:
          InputError: an empty prompt, an id outside the vocabulary, or every token is forbidden.
        """
        prompt = as_prompt(prompt, self._sampler.vocab_size)
        check_ids(sampled, self._sampler.vocab_size)
        self._sampler.row_options([sampling])  # raises
        unread = np.concatenate([prompt, sampled]).astype(np.int32)
        self._slots[slot] = _Slot(sampling, number, unread, -prompt.size)
        self._options = None

    def free(self, slot: int) -> None:
        """Ends the sample of a slot."""
        self._slots[slot] = None
        self._options = None

    def advance(self, steps: int) -> tuple[Sampled, Int[np.ndarray, "batch time"]]:
        """Reads or samples the next tokens in all slots.

        The first token of a prompt was read by `start`: it is not among them.

        Args:
          steps: how many tokens in each slot; few different numbers, as each is compiled for.

        Returns:
          The tokens, and the position of each in its sample: negative for those of the prompt,
          `IDLE` in idle slots.
        """
        self._start_new()
        forced = np.zeros((steps, len(self._slots)), np.int32)
        positions = np.full((len(self._slots), steps), IDLE, np.int32)
        for row, slot in enumerate(self._slots):
            if slot is not None:
                forced[:, row], positions[row] = slot.next_steps(steps)
        self._rows, sampled = compiled_loop()(
            self._program, self._weights, self._rows, forced, self._row_options(), None
        )
        return sampled.on_host(np.s_[:]), positions

    def _start_new(self) -> None:
        """Starts the rows of new slots."""
        starts = _idle_starts(len(self._slots))
        started = np.zeros(len(self._slots), bool)
        for row, slot in enumerate(self._slots):
            if slot is not None and slot.is_new:
                (token,), (position,) = slot.next_steps(1)
                starts.seeds[row], starts.numbers[row] = slot.sampling.seed, slot.number
                starts.tokens[row], starts.positions[row] = token, position
                started[row], slot.is_new = True, False
        if started.any():
            self._rows = replace_rows(self._weights, self._rows, self._start(starts), started)

    def _start(self, starts: Starts) -> Rows:
        rows: Rows = start_rows(
            self._sampler.config, self._weights, starts, penalty=True, max_copy=0
        )
        return rows

    @property
    def _weights(self) -> DecodeWeights:
        return self._sampler.weights(len(self._slots), self._program.num_top)

    def _row_options(self) -> RowOptions:
        """The options of the slots, made anew when what runs has changed."""
        if self._options is None:
            rows = [_IDLE_SAMPLING if slot is None else slot.sampling for slot in self._slots]
            num_top = self._program.num_top
            self._options = self._sampler.row_options(rows, num_top=num_top, all_or_none=True)
        return self._options


def _idle_starts(size: int) -> Starts:
    seeds, *others = np.zeros((4, size), np.int32)
    return Starts(seeds.astype(np.uint32), *others)
