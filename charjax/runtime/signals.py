"""Signals that ask a process to end: at once while it has nothing to save, else between steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Any

_WATCHED = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """A context in which SIGINT and SIGTERM are noted in `received` instead of killing.

    A second SIGINT exits at once with 130, for the person who will not wait.
    Outside the main thread, where Python allows no handlers, nothing changes.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._interrupts = 0
        self._handlers = ExitStack()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number, before in _heeded():
                signal.signal(number, self._note)
                self._handlers.callback(signal.signal, number, before)
            self._handlers.enter_context(_listening(self._exit_if_second))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handlers.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            os._exit(128 + number)
        self.received = number

    def _exit_if_second(self, number: int) -> None:
        """As `_note`, which Python does not call while a compiler or a device is waited for."""
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            os._exit(128 + number)


@contextmanager
def exit_on_signals(say: Callable[[str], None]) -> Iterator[None]:
    """A context in which SIGTERM and SIGINT exit at once with 143 and 130, whatever goes on.

    For a command with nothing to save; `StopSignals` takes over inside. No KeyboardInterrupt
    is raised: modules that load, and compilers, do not survive one in good order.

    Args:
      say: told, in one line, what happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def exit_now(number: int) -> None:
        say("interrupted" if number == signal.SIGINT else "terminated")
        os._exit(128 + number)

    with ExitStack() as stack:
        for number, before in _heeded():
            signal.signal(number, _leave_it_to_the_listener)
            stack.callback(signal.signal, number, before)
        stack.enter_context(_listening(exit_now))
        yield


def _heeded() -> Iterator[tuple[int, Any]]:
    """The signals watched and their handlers, but for those that this process is to ignore.

    So a shell asks for SIGINT, of a command in the background.
    """
    for number in _WATCHED:
        handler = signal.getsignal(number)
        if handler is not signal.SIG_IGN:
            yield number, handler


@contextmanager
def _listening(react: Callable[[int], None]) -> Iterator[None]:
    """Has a thread react to the number of each signal that arrives, whatever else goes on."""
    arrivals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(arrivals, react), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(wakeup)  # and with it the thread ends


def _listen(arrivals: int, react: Callable[[int], None]) -> None:
    while number := os.read(arrivals, 1):
        if number[0] in _WATCHED:
            react(number[0])
    os.close(arrivals)


def _leave_it_to_the_listener(number: int, frame: Any) -> None:
    pass
