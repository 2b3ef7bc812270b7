"""A terminal by rich: messages, texts in boxes, and a live panel of the task at work.

The colours are those of the terminal's own palette, so that they can be read on light and dark.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from charjax.runtime.signals import before_exit
from charjax.runtime.status import Refresh, StatusHistory, TimeLeft, TrainingStatus, top_of
from charjax.runtime.terminal import escape_controls

_MIN_PANEL_LINES = 10  # of the terminal; a lower one shows the bar alone
_MIN_BAR_COLUMNS, _BAR_COLUMNS = 60, 24
_DEFAULT_COLUMNS = 80
_MIN_SAMPLE_COLUMNS = 44  # of each of several samples side by side
# A terminal writes ^C where the cursor is. If that began a line, one of a panel would remain. The
# second Ctrl-C ends a run at once.
_CTRL_C_COLUMNS = 2 * len("^C")
_LEVELS, _ASCII_LEVELS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_ROWS = (
    ("loss", "train_loss", "{:.4f}", "cyan"),
    ("val loss", "val_loss", "{:.4f}", "yellow"),
    ("best", "best", "{:.4f}", "green"),
    ("chars/s", "chars_per_second", "{:,.0f}", "magenta"),
)


class RichDisplay:
    """A display on a terminal; see `charjax.runtime.display.Display`."""

    def __init__(self, stream: Any) -> None:
        self._console = Console(file=stream, highlight=False, emoji=False)
        if not self._console.width:  # COLUMNS=0 in the environment: rich would show nothing
            self._console.width = _DEFAULT_COLUMNS

    def report(self, message: str) -> None:
        """Prints a message, which the terminal wraps."""
        self._console.print(escape_controls(message), markup=False, soft_wrap=True)

    def text(self, text: str) -> None:
        """Prints a text, dim."""
        self._console.print(escape_controls(text), markup=False, soft_wrap=True, style="dim")

    def samples(self, samples: Sequence[tuple[str, str]]) -> None:
        """Prints titled texts in boxes: side by side where the terminal is wide enough."""
        boxes = [sample_box(title, text) for title, text in samples]
        if self._console.width >= _MIN_SAMPLE_COLUMNS * len(boxes):
            self._console.print(side_by_side(boxes))
        else:
            for each in boxes:
                self._console.print(each)

    def table(self, lines: Iterable[Mapping[str, str]]) -> None:
        """Prints names and values as a table."""
        self._console.print(closing_table(lines))

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[..., None]]:
        """A context with a live view of a task, which it clears at its end."""
        view, refresh = TaskView(name), Refresh()
        # redirect_stdout would send everything printed to stdout, such as samples, to the console.
        live = Live(
            view, console=self._console, auto_refresh=False, transient=True, redirect_stdout=False
        )
        with live, before_exit(live.stop):

            def update(
                done: int, total: int = 0, note: str = "", status: TrainingStatus | None = None
            ) -> None:
                view.update(done, total, note, status)
                refresh(live.refresh)

            # rich has hidden the cursor; so it would stay after Ctrl-Z, `kill -9` or an abort in C.
            self._console.show_cursor(True)
            live.refresh()
            yield update


class TaskView:
    """What is shown of a task: one line, or a panel once there is a training status."""

    def __init__(self, name: str) -> None:
        self._name, self._note, self._history = name, "", StatusHistory()
        self._time_left, self._left = TimeLeft(), ""
        self._done: int | None = None  # before the first update
        self._total = 0

    def update(
        self, done: int, total: int = 0, note: str = "", status: TrainingStatus | None = None
    ) -> None:
        """Takes over the newest values; see `charjax.runtime.display.Display.task`."""
        self._done, self._note = done, "" if status else note
        self._left = self._time_left.update(done, total)
        if status:
            self._history.add(done, status)
        elif self._history.points:
            return  # an evaluation between steps; the total stays
        self._total = total

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        if not self._history.points or console.height < _MIN_PANEL_LINES:
            bar = self._bar(_BAR_COLUMNS) if options.max_width >= _MIN_BAR_COLUMNS else []
            yield _row(Text(self._name), *bar, self._numbers())
            return
        rows = Table.grid(expand=True)
        rows.add_row(self._curves())
        rows.add_row(_row(*self._bar(None), self._numbers(), widest=0))
        room = _CTRL_C_COLUMNS if options.max_width >= _MIN_BAR_COLUMNS else 0
        yield Panel(
            rows,
            title=Text(self._name),
            title_align="left",
            border_style="dim",
            width=options.max_width - room,
        )

    def _curves(self) -> Table:
        """A row for each kind of number: its name, its newest value, a sparkline."""
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(no_wrap=True, justify="right", style="bold")
        grid.add_column(no_wrap=True, ratio=1)
        for label, name, form, color in _ROWS:
            values = self._history.filled(name)
            if known := [value for value in values if value is not None]:
                lowest = 0.0 if name == "chars_per_second" else min(known)
                grid.add_row(label, form.format(known[-1]), _Sparkline(values, lowest, color))
        return grid

    def _bar(self, width: int | None) -> list[ProgressBar]:
        """A progress bar of `width` columns (None: as wide as its cell); none without a total."""
        if not self._total:
            return []
        return [
            ProgressBar(self._total, self._done or 0, width, complete_style="cyan", style="dim")
        ]

    def _numbers(self) -> Text:
        """How much is done, the time left, and the note."""
        total = f"{self._total:,}" if self._total else "?"
        done = "" if self._done is None else f"{self._done:,}/{total}"
        parts = [done, self._left, self._note]
        return Text("  ".join(filter(None, parts)))


def _row(*cells: RenderableType, widest: int = -1) -> Table:
    """Cells side by side; the cell at index `widest` takes the width that the others leave."""
    row = Table.grid(padding=(0, 1), expand=widest >= 0)
    for number in range(len(cells)):
        row.add_column(no_wrap=True, ratio=1 if number == widest else None)
    row.add_row(*cells)
    return row


class _Sparkline:
    """Values as a line of blocks of eight heights, as wide as its cell."""

    def __init__(self, values: Sequence[float | None], lowest: float, color: str) -> None:
        self._values, self._lowest, self._color = values, lowest, color

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        levels = _ASCII_LEVELS if options.ascii_only else _LEVELS
        yield Text(sparkline(self._values, self._lowest, options.max_width, levels), self._color)


def sparkline(
    values: Sequence[float | None], lowest: float, width: int, levels: str = _LEVELS
) -> str:
    """A character for each value, or for the mean of neighbours where there are more than `width`.

    Args:
      values: in order; None: a blank.
      lowest: the value of the lowest level.
      width: the most characters.
      levels: a character for each height.
    """
    top = top_of(value for value in values if value is not None)
    span = top - lowest or 1.0
    count = min(width, len(values))
    edges = [len(values) * i // count for i in range(count + 1)] if count else []
    characters = ""
    for i, j in itertools.pairwise(edges):
        group = [value for value in values[i:j] if value is not None]
        height = min(statistics.fmean(group), top) - lowest if group else 0.0
        characters += levels[round((len(levels) - 1) * height / span)] if group else " "
    return characters


def sample_box(title: str, text: str) -> Panel:
    """A text in a box with a title."""
    shown = Text(escape_controls(text), overflow="fold")
    return Panel(shown, title=Text(title), title_align="left", border_style="dim")


def side_by_side(boxes: Sequence[Panel]) -> Padding:
    """Boxes of one width in a row, as wide as the panel of a task."""
    grid = Table.grid(expand=True)
    for _ in boxes:
        grid.add_column(ratio=1)
    grid.add_row(*boxes)
    return Padding(grid, (0, _CTRL_C_COLUMNS, 0, 0))


def closing_table(lines: Iterable[Mapping[str, str]]) -> Table:
    """Names and values, as a table of two columns."""
    table = Table(box=box.ROUNDED, show_header=False, border_style="dim")
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for line in lines:
        for name, value in line.items():
            table.add_row(Text(name), Text(escape_controls(value)))
    return table
