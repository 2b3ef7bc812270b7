"""Time slicing: jobs take turns where texts would depend on what else is in their batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from charjax.errors import CharjaxError
from charjax.inference.sampling.sampler import Sampler
from charjax.inference.sampling.slots import SlotBatch
from charjax.serve.errors import ProtocolError
from charjax.serve.jobs import Choice, Job

_MAX_JOBS = 4
_STEPS = 256  # of a dispatch that reads a prompt
_ENDED = object()


class TurnRunner:
    """Jobs that take turns: each runs alone, as `charjax sample` runs it, one chunk at a time."""

    def __init__(self, sampler: Sampler) -> None:
        """Takes the sampler of the model."""
        self._sampler = sampler
        self.capacity = _MAX_JOBS
        self._jobs: list[tuple[Job, Iterator[None]]] = []

    @property
    def texts(self) -> list[Choice]:
        """Those that are written."""
        return [text for job, _ in self._jobs for text in job]

    def start(self, job: Job) -> bool:
        """Adds a job to those that take turns, if there is a place."""
        if len(self._jobs) == self.capacity:
            return False
        self._jobs.append((job, self._write(job)))
        return True

    def advance(self) -> None:
        """One chunk of every job."""
        self._jobs = [entry for entry in self._jobs if _goes_on(*entry)]

    def stop(self) -> None:
        """Drops all jobs."""
        self._jobs.clear()

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
            position = 0
            for sampled in chunks:
                num_samples, num_tokens = sampled.ids.shape
                texts = job[first : first + num_samples]
                for row, text in enumerate(texts):
                    text.read(sampled.on_host(row), position)
                position += num_tokens
                yield
                if all(text.is_given_up for text in texts):
                    break
            first += len(texts)

    def _read_prompt(self, job: Job) -> Iterator[None]:
        """Reads the prompt for its log-probabilities, if they are asked for."""
        writing, prompt = job[0].writing, job[0].prompt
        if not writing.scores_prompt:
            return
        batch = SlotBatch(self._sampler, 1, num_top=writing.num_top)
        batch.start(0, prompt.ids, writing.sampling)
        for position in range(1 - prompt.ids.size, 0, _STEPS):
            sampled, _ = batch.advance(_STEPS)
            tokens = sampled.on_host(0).on_host(np.s_[:-position])
            for text in job:
                text.read(tokens, position)
            yield


def _goes_on(job: Job, chunks: Iterator[None]) -> bool:
    """Writes the next chunk of a job, if there is one and somebody waits for it."""
    try:
        return not all(text.is_given_up for text in job) and next(chunks, _ENDED) is not _ENDED
    except CharjaxError as error:
        for text in job:
            text.fail(ProtocolError(400, str(error)))
        return False
