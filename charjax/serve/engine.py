"""One thread per model that writes the texts of all requests."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Sequence

from charjax.inference.load import TrainedModel
from charjax.inference.sampling.groups import is_batch_invariant
from charjax.inference.sampling.sampler import Sampler
from charjax.runtime.display import counted
from charjax.serve.errors import ProtocolError, shutting_down
from charjax.serve.jobs import Choice, Job
from charjax.serve.runners import SlotRunner
from charjax.serve.schemas import MAX_LOGPROBS
from charjax.serve.turns import TurnRunner

_logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 5


class Engine:
    """The texts that wait for a model, and the thread that writes them."""

    def __init__(self, trained: TrainedModel, max_queue: int) -> None:
        """Starts the thread; `warm_up` compiles its programs.

        Args:
          trained: the model.
          max_queue: texts that may wait.
        """
        model = trained.config.model
        sampler = Sampler.for_vocab(model, trained.params, trained.vocab)
        self._turns = TurnRunner(sampler)
        self._slots: dict[bool, SlotRunner] = {}  # without and with log-probabilities
        if is_batch_invariant(model):
            num_top = min(MAX_LOGPROBS, len(trained.vocab))
            self._slots = {False: SlotRunner(sampler, None), True: SlotRunner(sampler, num_top)}
        self._max_texts = max_queue + max(runner.capacity for runner in self._runners)
        self._texts: list[Choice] = []  # those that wait or are written
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="charjax-engine", daemon=True)
        self._thread.start()

    @property
    def is_shared(self) -> bool:
        """Whether requests run in one batch."""
        return bool(self._slots)

    def warm_up(self) -> None:
        """Compiles the programs of requests without options; before the first request."""
        for runner in self._slots.values():
            runner.warm_up()

    def submit(self, texts: Sequence[Choice]) -> None:
        """Adds the texts of a request to the queue.

        Raises:
          ProtocolError: the queue is full, or the server ends.
        """
        new = [text for text in texts if not text.done]
        with self._changed:
            if self._is_closed:
                raise shutting_down()
            pending = [text for text in self._texts if not text.is_given_up]
            if pending and len(pending) + len(new) > self._max_texts:
                busy = f"busy with {counted(len(pending), 'text')}; try again later"
                raise ProtocolError(429, busy, code="queue_full")
            self._texts = pending + new
            self._waiting.extend(self._split(new))
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread after its next tokens, for which it waits for some seconds at most."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(_CLOSE_SECONDS)

    @property
    def _runners(self) -> list[SlotRunner | TurnRunner]:
        return [*self._slots.values(), self._turns]

    def _runner(self, text: Choice) -> SlotRunner | TurnRunner:
        if not self._slots or text.writing.copies:
            return self._turns
        return self._slots[text.writing.num_top is not None]

    def _split(self, texts: Sequence[Choice]) -> list[Job]:
        """The texts of one request as jobs: each alone, or the samples of a prompt together."""
        if texts and self._runner(texts[0]) is not self._turns:
            return [[text] for text in texts]
        groups = itertools.groupby(texts, key=lambda text: id(text.prompt))
        return [list(group) for _, group in groups]

    def _run(self) -> None:
        while self._wait_for_work():
            self._start_jobs()
            try:
                for runner in self._runners:
                    runner.advance()
            except Exception:
                self._fail([text for runner in self._runners for text in runner.texts])
                for runner in self._runners:
                    runner.stop()

    def _wait_for_work(self) -> bool:
        """Waits until there is a text to write; returns False once the engine is closed."""
        with self._changed:
            while not (self._is_closed or self._waiting or any(r.texts for r in self._runners)):
                self._changed.wait()
            return not self._is_closed

    def _start_jobs(self) -> None:
        """Starts the waiting jobs that can start, in their order."""
        waiting = []
        while self._waiting:  # without the lock, for which the event loop would wait
            job = self._waiting.popleft()
            if all(text.is_given_up for text in job):
                continue
            try:
                if not self._runner(job[0]).start(job):
                    waiting.append(job)
            except Exception:
                self._fail(job)
        self._waiting.extendleft(reversed(waiting))

    def _fail(self, texts: Sequence[Choice]) -> None:
        """Gives texts up because of the error that is being handled."""
        _logger.exception("a text could not be written")
        for text in texts:
            text.fail(ProtocolError(500, "the text could not be written; see the server's log"))
