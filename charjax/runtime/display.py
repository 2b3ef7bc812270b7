"""Where messages and progress are shown: rich in a terminal, plain lines on a pipe.

Messages go to loggers below `charjax`, by `logging.getLogger(__name__)`. Without a handler, as in a
notebook, Python's `logging` shows the warnings and drops the rest; `show_messages` shows all.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_SECONDS = 10.0  # between progress lines on a pipe


@runtime_checkable
class Display(Protocol):
    """Shows messages, texts and progress."""

    def report(self, message: str) -> None:
        """One message, on a line of its own."""

    def text(self, text: str) -> None:
        """Text as it is, such as a sample."""

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[..., None]]:
        """A task with progress; yields `update(done, total, note)`; `total` 0: unknown."""


def make_display(stream: IO[str]) -> Display:
    """A display for the stream: rich in a terminal, plain lines elsewhere."""
    return _RichDisplay(stream) if stream.isatty() else _PlainDisplay(stream)


@contextmanager
def show_messages(display: Display) -> Iterator[None]:
    """A context in which a display shows the messages of charjax's loggers, one line each.

    Where contexts nest, the innermost display shows them, alone.
    """
    logger = logging.getLogger("charjax")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [_DisplayHandler(display)], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


class _DisplayHandler(logging.Handler):
    """Reports messages to a display, whose errors (a closed pipe) go to whoever logs."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.report(record.getMessage())


class SilentDisplay:
    """Shows nothing: for all processes of a run but the one that speaks."""

    def report(self, message: str) -> None:
        """Nothing."""

    text = report

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[..., None]]:
        """Nothing, for a while."""
        yield lambda done, total=0, note="": None


class _PlainDisplay:
    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def report(self, message: str) -> None:
        print(message, file=self._stream, flush=True)

    text = report

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[..., None]]:
        started = said = time.monotonic()
        first: int | None = None

        def update(done: int, total: int = 0, note: str = "") -> None:
            nonlocal said, first
            first = done if first is None else first
            now = time.monotonic()
            if now - said < _PLAIN_SECONDS:
                return
            said = now
            of = f"/{total}" if total else ""
            left = (now - started) / max(done - first, 1) * (total - done)
            eta = f"  {_clock(left)} left" if total and done > first else ""
            self.report(f"{name} {done}{of}  {note}{eta}".rstrip())

        yield update


class _RichDisplay:
    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    @functools.cached_property
    def _console(self) -> Console:
        from rich.console import Console  # not needed where there is nothing to show

        return Console(file=self._stream, highlight=False, emoji=False, soft_wrap=True)

    def report(self, message: str) -> None:
        self._console.print(message, markup=False)

    def text(self, text: str) -> None:
        self._console.print(text, markup=False, style="dim")

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[..., None]]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        # Redirection would send what others print to stdout into this console.
        with Progress(
            *columns, console=self._console, transient=True, redirect_stdout=False
        ) as progress:
            shown = progress.add_task(name, total=None, note="")

            def update(done: int, total: int = 0, note: str = "") -> None:
                progress.update(shown, completed=done, total=total or None, note=note)

            yield update


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
