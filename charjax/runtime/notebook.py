"""The cell of a notebook: messages as lines, and a picture of the loss that is redrawn in place.

The SVG is written by hand: matplotlib takes a tenth of a second for a picture.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from charjax.runtime.status import Refresh, StatusHistory, TimeLeft, TrainingStatus, top_of
from charjax.runtime.terminal import escape_controls

_MIN_REFRESH_S = 1.0
_WIDTH, _HEIGHT = 640, 240
_LEFT, _TOP, _RIGHT, _BOTTOM = 44.0, 10.0, 630.0, 214.0  # of the axes
_CURVES = (("train_loss", "training", "#4c8bf5"), ("val_loss", "validation", "#f2820d"))


class NotebookDisplay:
    """A display in the cell of a notebook; see `charjax.runtime.display.Display`."""

    def report(self, message: str) -> None:
        """Prints a line."""
        print(escape_controls(message), flush=True)  # noqa: T201

    text = report

    def samples(self, samples: Sequence[tuple[str, str]]) -> None:
        """Prints the texts with their titles."""
        for title, text in samples:
            self.report(f"=== {title} ===\n{text}\n")

    def table(self, lines: Iterable[Mapping[str, str]]) -> None:
        """Prints a line for each name."""
        for line in lines:
            for name, value in line.items():
                self.report(f"{name}: {value}")

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[..., None]]:
        """A context with a line about a task, or a picture of the loss once there is one."""
        history, refresh, output = StatusHistory(), Refresh(_MIN_REFRESH_S), _Output()
        time_left, caption = TimeLeft(), name

        def draw() -> None:
            output.show(loss_picture(history, caption) if history.points else "", caption)

        def update(
            done: int, total: int = 0, note: str = "", status: TrainingStatus | None = None
        ) -> None:
            nonlocal caption
            if status:
                history.add(done, status)
            of_total = f" of {total:,}" if total else ""
            parts = [f"{name}: {done:,}{of_total}", note, time_left.update(done, total)]
            caption = " · ".join(filter(None, parts))
            refresh(draw)

        yield update
        draw()


class _Output:
    """An output of the cell, which is replaced whenever there is another one to show."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, picture: str, caption: str) -> None:
        from IPython.display import display

        caption = escape_controls(caption)
        shown = f"{picture}<div><small>{html.escape(caption)}</small></div>"
        data = {"text/html": shown, "text/plain": caption}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)


def loss_picture(history: StatusHistory, title: str) -> str:
    """The training and validation loss over steps, as an SVG element in the colours of the page.

    Args:
      history: of the run.
      title: says the same to a screen reader.
    """
    curves = [(label, color, history.series(name)) for name, label, color in _CURVES]
    losses = [loss for _, _, points in curves for _, loss in points]
    if not losses:
        return ""
    low = min(losses)
    high = max(top_of(losses), low + 0.01)
    first, last = history.points[0][0], max(history.points[-1][0], history.points[0][0] + 1)
    first = 0 if 10 * first < last else first  # a resumed run may start far from 0

    def x(step: int) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (step - first) / (last - first)

    def y(loss: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (min(loss, high) - low) / (high - low)

    parts = [
        f'<svg role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" fill="none" '
        f'stroke-width="1.5" font-size="11" style="max-width: 100%">'
        f"<title>{html.escape(escape_controls(title))}</title>"
    ]
    for i in range(5):
        loss, step = low + (high - low) * i / 4, first + (last - first) * i // 4
        parts.append(
            f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y(loss):.1f}" y2="{y(loss):.1f}" '
            'stroke="currentColor" stroke-width="0.5" opacity="0.3"/>'
        )
        parts.append(_label(_LEFT - 6, y(loss) + 4, f"{loss:.2f}", "end"))
        anchor = ("start", "middle", "middle", "middle", "end")[i]
        parts.append(_label(x(step), _BOTTOM + 18, f"{step:,}", anchor))
    for i, (label, color, points) in enumerate(curves):
        if points:
            path = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in points)
            parts.append(f'<polyline points="{path}" stroke="{color}"/>')
            parts.append(_label(_RIGHT - 8, _TOP + 16 * (i + 1), label, "end", color))
    return "".join([*parts, "</svg>"])


def _label(x: float, y: float, text: str, anchor: str, color: str = "currentColor") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{text}</text>'
