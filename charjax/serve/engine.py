"""One thread per model that writes the texts of all requests."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Sequence

from charjax.runtime.display import counted
from charjax.serve.errors import ProtocolError
from charjax.serve.jobs import Choice, Job
from charjax.serve.runners import ModelRunner

_logger = logging.getLogger(__name__)


class Engine:
    """The texts that wait for a model, and the thread that writes them."""

    def __init__(self, runner: ModelRunner, max_queue: int) -> None:
        """Starts the thread.

        Args:
          runner: of the model; used only in the thread.
          max_queue: texts that may wait.
        """
        self._runner, self._max_queue = runner, max_queue
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running: list[Choice] = []  # those of the runner, and of the jobs about to start
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="charjax-engine", daemon=True)
        self._thread.start()

    def submit(self, texts: Sequence[Choice]) -> None:
        """Adds the texts of a request to the queue.

        Raises:
          ProtocolError: the queue is full, or the server ends.
        """
        for text in texts:
            text.begin()
        jobs = self._runner.split([text for text in texts if not text.done])
        with self._changed:
            if self._is_closed:
                raise ProtocolError(503, "the server is shutting down")
            if jobs:
                self._check_queue(len(texts))
                self._waiting.extend(jobs)
                self._changed.notify()

    def _check_queue(self, num_new: int) -> None:
        # Each text says whether it is done: its client may know that before this thread's runner.
        texts = itertools.chain(self._running, *self._waiting)
        pending = sum(not text.is_given_up for text in texts)
        if pending and pending + num_new > self._runner.capacity + self._max_queue:
            raise ProtocolError(
                429, f"busy with {counted(pending, 'text')}; try again later", code="queue_full"
            )

    def close(self, timeout: float) -> None:
        """Ends the thread after its next tokens; waits for that up to `timeout` seconds."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while self._wait_for_work():
            self._start_jobs()
            try:
                self._runner.advance()
            except Exception:
                self._fail(self._runner.stop())

    def _fail(self, texts: Sequence[Choice]) -> None:
        """Gives texts up because of the error that is being handled."""
        _logger.exception("a text could not be written")
        for text in texts:
            text.fail(ProtocolError(500, "the text could not be written; see the server's log"))

    def _wait_for_work(self) -> bool:
        """Waits until there is a text to write; returns False once the engine is closed."""
        with self._changed:
            while not self._is_closed and not self._waiting and not self._runner.num_texts:
                self._changed.wait()
            return not self._is_closed

    def _start_jobs(self) -> None:
        """Starts the waiting jobs that can start, in their order."""
        with self._changed:  # not held while jobs start: that would stop the event loop
            jobs = [job for job in self._waiting if not all(text.is_given_up for text in job)]
            self._waiting.clear()
            self._running = [t for t in itertools.chain(self._running, *jobs) if not t.is_given_up]
        waiting = []
        for job in jobs:
            if not self._runner.has_place(job):
                waiting.append(job)
                continue
            try:
                self._runner.start(job)
            except Exception:
                self._fail(job)
        with self._changed:
            self._waiting.extendleft(reversed(waiting))
            still_waiting = set(map(id, itertools.chain(*waiting)))
            self._running = [text for text in self._running if id(text) not in still_waiting]
