"""Signals that ask a process to end: recorded while a run trains, else an immediate exit.

SIGINT and SIGTERM; SIGHUP, of a terminal that is closed; SIGUSR1, which a batch system sends before
its time limit; SIGXCPU, of a limit on processor time; SIGBREAK, of Ctrl-Break on Windows.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU", "SIGBREAK")
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_WORDS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_LAST_WORDS_S = 1.0  # for a terminal that takes no output, as over a broken connection
_before_exit: list[Callable[[], None]] = []


class StopSignals:
    """A context in which these signals do not end the process but set `received`.

    A second SIGINT exits at once with 130; in the kernel of a notebook, which must live on, it
    raises KeyboardInterrupt. Outside the main thread, where Python allows no handlers, nothing
    changes.

    Attributes:
      received: the last signal's number; None: there was none.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._interrupts = 0
        self._on_exit = ExitStack()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            _handle_signals(self._on_exit, self._note)
            if not _is_kernel():
                self._on_exit.enter_context(_listener_thread(self._exit_if_second))
        return self

    def __exit__(self, *error: object) -> None:
        self._on_exit.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            if _is_kernel():
                raise KeyboardInterrupt
            _exit(number)
        self.received = number

    def _exit_if_second(self, number: int) -> None:
        """Exits at a second SIGINT, also while the main thread is in C, unlike `_note`."""
        if number == signal.SIGINT:
            self._interrupts += 1
        if self._interrupts > 1:
            _exit(number)


@contextmanager
def exit_on_signals(say: Callable[[str], None]) -> Iterator[None]:
    """A context in which these signals end the process at once, with 128 plus the number.

    For a command with nothing to save; a `StopSignals` inside it takes its place. It never raises
    KeyboardInterrupt, which can leave imports and compilations half done. In the kernel of a
    notebook, which must live on, and outside the main thread nothing changes.

    Args:
      say: is called with one line before the exit.
    """
    if _is_kernel() or threading.current_thread() is not threading.main_thread():
        yield
        return

    def exit_now(number: int) -> None:
        words = _WORDS.get(number) or f"ended by {signal.Signals(number).name}"
        _exit(number, lambda: say(words))

    with ExitStack() as stack:
        _handle_signals(stack, lambda number, frame: None)  # the listener thread reacts
        stack.enter_context(_listener_thread(exit_now))
        yield


@contextmanager
def before_exit(call: Callable[[], None]) -> Iterator[None]:
    """A context in which an exit by a signal calls this first, as to clear a view of a terminal."""
    _before_exit.append(call)
    try:
        yield
    finally:
        _before_exit.remove(call)


def _exit(number: int, say: Callable[[], None] = lambda: None) -> None:
    """Exits at once with 128 plus the signal's number; no output can prevent that."""

    def end_output() -> None:
        for call in (*reversed(_before_exit), say):
            with suppress(Exception):  # the terminal may be gone
                call()

    try:
        last_words = threading.Thread(target=end_output, daemon=True)
        last_words.start()
        last_words.join(_LAST_WORDS_S)
    finally:
        os._exit(128 + number)


def _is_kernel() -> bool:
    """Whether this process is the kernel of a notebook."""
    module = sys.modules.get("ipykernel.kernelapp")
    return module is not None and bool(module.IPKernelApp.initialized())


def _handle_signals(on_exit: ExitStack, handler: Callable[[int, FrameType | None], Any]) -> None:
    """Sets the handler of all these signals, except ignored ones, until the stack is closed.

    A shell makes its background jobs ignore SIGINT, and `nohup` its command SIGHUP; they must go
    on ignoring them.
    """
    for number in _SIGNALS:
        before = signal.getsignal(number)
        if before is not signal.SIG_IGN:
            signal.signal(number, handler)
            on_exit.callback(signal.signal, number, before)


@contextmanager
def _listener_thread(react: Callable[[int], None]) -> Iterator[None]:
    """A thread that calls `react` with each signal's number, even while the main thread is in C."""
    arrivals, wakeup = os.pipe()
    if os.name == "posix":  # Windows neither can nor must
        os.set_blocking(wakeup, False)
    before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(arrivals, react), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(wakeup)  # ends the thread


def _listen(arrivals: int, react: Callable[[int], None]) -> None:
    while number := os.read(arrivals, 1):
        if number[0] in _SIGNALS:
            react(number[0])
    os.close(arrivals)
