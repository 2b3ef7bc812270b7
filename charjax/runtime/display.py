"""Where messages and progress are shown: a terminal, a notebook, or plain lines on a pipe.

Messages go to loggers below `charjax`, by `logging.getLogger(__name__)`. Without a handler, as in a
library, Python's `logging` shows the warnings and drops the rest; `show_messages` shows all.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, runtime_checkable

from charjax.runtime.status import TimeLeft, TrainingStatus
from charjax.runtime.terminal import escape_controls

# Called with the amount done, such as bytes received, and the total; 0: unknown.
ProgressFn: TypeAlias = Callable[[int, int], None]

_PLAIN_INTERVAL_S = 10.0  # between progress lines on a pipe


def no_progress(done: int, total: int) -> None:
    """A `ProgressFn` that ignores its arguments."""


def listed(items: Sequence[str], most: int = 8) -> str:
    """The items with commas between them; of more than `most`, how many more there are."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 character" or "2,000 characters"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def code_points(tokens: Sequence[str]) -> str:
    """Characters as U+XXXX, and tokens with longer names as they are, with commas between them."""
    return listed([f"U+{ord(token):04X}" if len(token) == 1 else token for token in tokens])


@runtime_checkable
class Display(Protocol):
    """Shows messages, texts and progress."""

    def report(self, message: str) -> None:
        """Shows one message, as one line."""

    def text(self, text: str) -> None:
        """Shows a text unchanged."""

    def samples(self, samples: Sequence[tuple[str, str]]) -> None:
        """Shows generated texts with their titles."""

    def table(self, lines: Iterable[Mapping[str, str]]) -> None:
        """Shows names with their values: a line or more for each mapping."""

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[..., None]]:
        """A context with a progress bar; yields `update(done, total=0, note="", status=None)`.

        A `total` of 0 is unknown; `note` is shown beside the bar, such as the loss. A display that
        can draw curves draws those of `status`, a `TrainingStatus`, and leaves out the note.
        """


class LastingStream:
    """A text stream that drops what is written once its reader, or its terminal, is gone.

    So `charjax train | head` goes on, and a closed terminal leaves time to save.

    Attributes:
      stream: the stream itself.
    """

    def __init__(self, stream: Any, on_loss: Callable[[str], None] = lambda reason: None) -> None:
        """Wraps a stream.

        Args:
          stream: its descriptor becomes the null device when a write fails, so that nothing
            that is still buffered fails again, not even when Python exits.
          on_loss: is told, once, why a write failed.
        """
        self.stream, self._on_loss, self._is_lost = stream, on_loss, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Writes the text, if there is somewhere to write to."""
        with self._silenced():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        with self._silenced():
            self.stream.flush()

    @contextmanager
    def _silenced(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._is_lost:
                self._is_lost = True
                discard_output(self.stream)
                self._on_loss(error.strerror or str(error))


def discard_output(stream: Any) -> None:
    """Sends what a stream has buffered, and all that follows, to the null device."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def make_display(stream: Any) -> Display:
    """The display for a text stream: by rich on a terminal, in the cell of a notebook, or plain."""
    # The packages of each are imported only where it is used.
    if stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        from charjax.runtime.panel import RichDisplay

        return RichDisplay(stream)
    if type(getattr(stream, "stream", stream)).__module__ == "ipykernel.iostream":
        from charjax.runtime.notebook import NotebookDisplay

        return NotebookDisplay()
    return PlainDisplay(stream)


@contextmanager
def show_messages(display: Display) -> Iterator[None]:
    """A context in which a display shows the messages of charjax's loggers, one line each.

    A message of an error that is a bug has its traceback.
    Where contexts nest, or threads have some at the same time, the newest display alone shows them.
    """
    _messages.start(display)
    try:
        yield
    finally:
        _messages.stop(display)


@contextmanager
def show_task(name: str) -> Iterator[ProgressFn]:
    """A context in which standard error shows messages and the progress of a task."""
    display = make_display(sys.stderr)
    with show_messages(display), display.task(name) as update:
        yield update


class _DisplayHandler(logging.Handler):
    """Reports messages to the newest display; its errors (a closed pipe) are raised where one logs.

    The loggers are as before when no display is left. Displays may stop in any order.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logger, self._displays = logging.getLogger("charjax"), list[Display]()
        self._before = self._logger.handlers, self._logger.propagate, self._logger.level
        self._change = threading.Lock()

    def start(self, display: Display) -> None:
        logger = self._logger
        with self._change:
            if not self._displays:
                self._before = logger.handlers, logger.propagate, logger.level
            self._displays.append(display)
            logger.handlers, logger.propagate = [self], False
            logger.setLevel(logging.INFO)

    def stop(self, display: Display) -> None:
        with self._change:
            self._displays.remove(display)
            if not self._displays:
                self._logger.handlers, self._logger.propagate, level = self._before
                self._logger.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        for display in self._displays[-1:]:  # none if another thread has just stopped the last one
            display.report(self.format(record))


_messages = _DisplayHandler()


class PlainDisplay:
    """A display of plain lines, with a line of progress every ten seconds."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def report(self, message: str) -> None:
        """Prints a line."""
        shown = escape_controls(message) if self._stream.isatty() else message
        print(shown, file=self._stream, flush=True)

    text = report

    def samples(self, samples: Sequence[tuple[str, str]]) -> None:
        """Prints the last text with its title."""
        for title, text in samples[-1:]:
            self.text(f"=== {title} ===\n{text}\n")

    def table(self, lines: Iterable[Mapping[str, str]]) -> None:
        """Prints a line for each mapping."""
        for line in lines:
            self.report("  ".join(f"{name}: {value}" for name, value in line.items()))

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[..., None]]:
        """As `Display.task`."""
        printed, time_left = time.monotonic(), TimeLeft()

        def update(
            done: int, total: int = 0, note: str = "", status: TrainingStatus | None = None
        ) -> None:
            nonlocal printed
            left, now = time_left.update(done, total), time.monotonic()
            if now - printed < _PLAIN_INTERVAL_S:
                return
            printed = now
            of_total = f"/{total}" if total else ""
            self.report(f"{name} {done}{of_total}  {note}  {left}".rstrip())

        yield update
