"""Signals that ask a run to stop: noted at once, obeyed between steps."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from types import FrameType, TracebackType
from typing import Any

_WATCHED = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """A context in which SIGINT and SIGTERM are noted in `received` instead of killing.

    A second SIGINT exits at once with 130, for the person who will not wait. A thread
    watches for it, too: Python calls no handler while a compiler works.
    Outside the main thread, where Python allows no handlers, nothing changes.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._listener = self._fd_before = -1

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in _WATCHED}
            arrivals, self._listener = os.pipe()
            os.set_blocking(self._listener, False)
            self._fd_before = signal.set_wakeup_fd(self._listener, warn_on_full_buffer=False)
            threading.Thread(target=_exit_at_second_interrupt, args=(arrivals,)).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._fd_before)
            os.close(self._listener)  # and with it the thread ends

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            os._exit(128 + number)
        self.received = number


def _exit_at_second_interrupt(arrivals: int) -> None:
    """Reads the numbers of the signals that arrive, until the other end is closed."""
    seen: Counter[int] = Counter()
    while arrived := os.read(arrivals, 64):
        seen.update(arrived)
        if seen[signal.SIGINT] > 1:
            os._exit(128 + signal.SIGINT)
    os.close(arrivals)
