"""A running batch of samples that start and end at different times."""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Int, Key

from charjax.data.vocab import check_ids
from charjax.inference.row_controls import Enabled, RowControls
from charjax.inference.sampler import Sampler, check_prompt
from charjax.inference.sampling import Sampling
from charjax.inference.sampling_loop import compiled_loop
from charjax.inference.sampling_program import Program
from charjax.inference.sampling_rows import (
    Given,
    LoopCarry,
    Sampled,
    Starts,
    replace_rows,
    start_rows,
)
from charjax.model.decode_weights import DecodeWeights

# The position of a slot in which nothing runs.
IDLE = -(2**29)
_IDLE_SAMPLING = Sampling(temperature=0.0)
_NO_TOKENS = np.empty(0, np.int32)


class _Slot:
    """What one slot runs.

    Attributes:
      sampling: how its tokens are chosen.
      number: of its sample.
      unread: tokens that are given and were not read yet.
      position: of the next token in the sample; negative in the prompt.
    """

    def __init__(
        self, sampling: Sampling, number: int, unread: Int[np.ndarray, " n"], position: int
    ) -> None:
        self.sampling, self.number = sampling, number
        self.unread, self.position = unread, position


class SlotBatch:
    """A batch of a fixed size, in whose slots samples start and end at any time.

    Where `is_batch_invariant` holds, each is the sample that `Sampler` gives for the same prompt,
    options and number. Elsewhere the matmuls of another batch size may round differently.

    Two programs are compiled for each number of steps: one without controls, for when no slot has
    any, and one with all of them.
    """

    def __init__(self, sampler: Sampler, size: int, *, num_top: int | None = None) -> None:
        """Makes a batch of idle slots.

        Args:
          sampler: the model.
          size: number of slots.
          num_top: as for `Sampler.run`.
        """
        vocab_size = sampler.vocab_size
        self._sampler, self._num_top = sampler, num_top
        self._all = Enabled(
            top_k=vocab_size, top_p=True, min_p=True, penalty=True, bias=True, num_top=num_top
        )
        self._slots: list[_Slot | None] = [None] * size
        self._started: set[int] = set()
        self._controls: tuple[Enabled, RowControls] | None = None
        self._keys, self._loop = self._start(_idle_starts(size))

    def start(
        self,
        slot: int,
        prompt: Int[np.ndarray, " prompt"],
        sampling: Sampling,
        *,
        number: int = 0,
        sampled: Int[np.ndarray, " sampled"] = _NO_TOKENS,
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
        check_prompt(prompt, self._sampler.vocab_size)
        check_ids(sampled, self._sampler.vocab_size)
        self._sampler.row_controls([sampling])  # raises
        unread = np.concatenate([prompt, sampled]).astype(np.int32)
        self._slots[slot] = _Slot(sampling, number, unread, -prompt.size)
        self._started.add(slot)
        self._controls = None

    def free(self, slot: int) -> None:
        """Ends the sample of a slot."""
        self._slots[slot] = None
        self._started.discard(slot)
        self._controls = None

    def advance(self, steps: int) -> tuple[Sampled, Int[np.ndarray, "batch time"]]:
        """Reads or samples the next tokens in all slots.

        The first token of a prompt was read by `start`: it is not among them.

        Args:
          steps: how many tokens in each slot; few different numbers, as each is compiled for.

        Returns:
          The tokens, and the position of each in its sample: negative for those of the prompt,
          `IDLE` in idle slots.
        """
        self._replace_started()
        enabled, controls = self._enabled_controls()
        forced = np.zeros((steps, len(self._slots)), np.int32)
        positions = np.full((steps, len(self._slots)), IDLE, np.int32)
        for column, slot in enumerate(self._slots):
            if slot is not None:
                forced[:, column], positions[:, column] = _next_steps(slot, steps)
        self._loop, sampled = compiled_loop()(
            Program(self._sampler.config, enabled),
            self._weights,
            self._loop,
            Given(forced, positions),
            self._keys,
            controls,
            None,
        )
        return sampled.on_host(np.s_[:]), positions.T

    def _replace_started(self) -> None:
        """Gives the slots that were started since the last dispatch their carry and their key."""
        if not self._started:
            return
        starts = _idle_starts(len(self._slots))
        replaced = np.zeros(len(self._slots), bool)
        for index in self._started:
            slot = self._slots[index]
            assert slot is not None
            starts.seeds[index], starts.numbers[index] = slot.sampling.seed, slot.number
            starts.tokens[index], starts.positions[index] = slot.unread[0], slot.position
            slot.unread, slot.position = slot.unread[1:], slot.position + 1
            replaced[index] = True
        self._started.clear()
        running = self._keys, self._loop
        self._keys, self._loop = replace_rows(self._weights, running, self._start(starts), replaced)

    def _start(self, starts: Starts) -> tuple[Key[Array, " batch"], LoopCarry]:
        program = Program(self._sampler.config, self._all)
        started: tuple[Key[Array, " batch"], LoopCarry] = start_rows(program, self._weights, starts)
        return started

    @property
    def _weights(self) -> DecodeWeights:
        return self._sampler.weights(len(self._slots), self._all)

    def _enabled_controls(self) -> tuple[Enabled, RowControls]:
        """The controls of the slots, made anew when what runs has changed."""
        if self._controls is None:
            rows = [_IDLE_SAMPLING if slot is None else slot.sampling for slot in self._slots]
            has_any = Enabled.for_rows(rows) != Enabled()
            # Without controls, the bias forbids the token that is never sampled.
            enabled = self._all if has_any else Enabled(bias=True, num_top=self._num_top)
            self._controls = enabled, self._sampler.row_controls(rows)
        return self._controls


def _idle_starts(size: int) -> Starts:
    seeds, *others = np.zeros((4, size), np.int32)
    return Starts(seeds.astype(np.uint32), *others)


def _next_steps(slot: _Slot, steps: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The forced tokens (-1: sampled) and positions of a slot's next steps."""
    forced = np.full(steps, -1, np.int32)
    read = slot.unread[:steps]
    forced[: read.size] = read
    slot.unread = slot.unread[steps:]
    positions = slot.position + np.arange(steps, dtype=np.int32)
    slot.position += steps
    return forced, positions
