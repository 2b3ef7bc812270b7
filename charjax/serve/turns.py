"""Jobs that take turns, where texts would depend on what else is in their batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from charjax.errors import CharjaxError
from charjax.inference.sampler import Sampler
from charjax.inference.sampling_rows import Sampled
from charjax.inference.slots import SlotBatch
from charjax.serve.errors import ProtocolError
from charjax.serve.jobs import Choice, Job
from charjax.serve.text import TokenChunk, TopTokens

MAX_JOBS = 4  # that take turns
_STEPS = 256  # of a dispatch that reads a prompt
_NOTHING = TokenChunk(np.empty(0, np.int32))
_ENDED = object()


class TurnRunner:
    """Jobs that take turns: each runs alone, as `charjax sample` runs it, one chunk at a time."""

    def __init__(self, sampler: Sampler) -> None:
        """Takes the sampler of the model."""
        self._sampler = sampler
        self._jobs: list[tuple[Job, Iterator[None]]] = []

    @property
    def num_texts(self) -> int:
        """How many texts are written."""
        return sum(len(job) for job, _ in self._jobs)

    def has_place(self) -> bool:
        """Whether another job may take turns."""
        return len(self._jobs) < MAX_JOBS

    def start(self, job: Job) -> None:
        """Adds a job to those that take turns."""
        self._jobs.append((job, self._write(job)))

    def advance(self) -> None:
        """One chunk of every job."""
        for entry in list(self._jobs):
            job, chunks = entry
            is_given_up = all(text.is_given_up for text in job)
            try:
                if is_given_up or next(chunks, _ENDED) is _ENDED:
                    self._jobs.remove(entry)
            except CharjaxError as error:
                self._jobs.remove(entry)
                for text in job:
                    text.fail(ProtocolError(400, str(error)))

    def stop(self) -> list[Choice]:
        """Drops all jobs; returns their texts."""
        stopped = [text for job, _ in self._jobs for text in job]
        self._jobs.clear()
        return stopped

    def _write(self, job: Job) -> Iterator[None]:
        """Writes the samples of one prompt; one chunk at a step."""
        writing, prompt = job[0].writing, job[0].prompt
        yield from self._read_prompt(job)
        groups = self._sampler.run(
            prompt.ids,
            num_chars=writing.num_chars,
            num_samples=job[-1].number + 1,
            sampling=writing.sampling,
            num_top=writing.num_top,
            copies=writing.copies,
        )
        first = 0
        for chunks in groups:
            texts: Sequence[Choice] = ()
            for sampled in chunks:
                texts = job[first : first + sampled.ids.shape[0]]
                for row, text in enumerate(texts):
                    if not text.is_given_up:
                        text.read(_NOTHING, row_tokens(sampled, row, text))
                yield
                if all(text.is_given_up for text in texts):
                    break
            first += len(texts)

    def _read_prompt(self, job: Job) -> Iterator[None]:
        """Reads the prompt for its log-probabilities, if they are asked for."""
        writing, prompt = job[0].writing, job[0].prompt
        if not writing.echo or writing.num_top is None:
            return
        batch = SlotBatch(self._sampler, 1, num_top=writing.num_top)
        batch.start(0, prompt.ids, writing.sampling)
        for read in range(0, prompt.ids.size - 1, _STEPS):
            sampled, _ = batch.advance(_STEPS)
            tokens = row_tokens(sampled, 0, job[0]).part(0, prompt.ids.size - 1 - read)
            for text in job:
                text.read(tokens, _NOTHING)
            yield


def row_tokens(sampled: Sampled, row: int, text: Choice) -> TokenChunk:
    """The tokens of one row, with the log-probabilities that its text wants."""
    ids, num_top = np.asarray(sampled.ids[row]), text.writing.num_top
    if num_top is None or sampled.logprobs is None:
        return TokenChunk(ids)
    assert sampled.top_ids is not None
    assert sampled.top_logprobs is not None
    top = (np.asarray(a[row, :, :num_top]) for a in (sampled.top_ids, sampled.top_logprobs))
    return TokenChunk(ids, np.asarray(sampled.logprobs[row]), TopTokens(*top))
