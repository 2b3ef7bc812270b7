"""What a terminal shows of a run: curves, samples in boxes, a closing table."""

from __future__ import annotations

import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from charjax.runtime.panel import (
    RichDisplay,
    TaskView,
    closing_table,
    sample_box,
    sparkline,
)
from charjax.runtime.status import TrainingStatus

WIDTHS = (20, 60, 100, 200)
SAMPLES = [
    (f"step 500, temperature {t}", f"{t} ROMEO:\x1b[2J\tthou [b]art[/b] " * 4) for t in "123"
]


def shown(*parts: object, width: int, height: int = 24, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    console = Console(file=file, width=width, height=height)
    console.print(*parts, end="")
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def view(*statuses: TrainingStatus, total: int = 4000) -> TaskView:
    task = TaskView("training")
    for number, status in enumerate(statuses):
        task.update(100 * number, total, "a note", status)
    return task


TRAINING = [
    TrainingStatus(4.0 / n, 4.1 / n if n % 10 == 0 else None, 4.1 / (n // 10 * 10), 50e3 + n)
    for n in range(10, 40)
]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_panel_shows_the_newest_numbers_within_the_width(width):
    lines = shown(view(*TRAINING), width=width).splitlines()
    room = 4 if width > 20 else 0  # for the ^C^C of a terminal, which may not begin a line
    assert [cell_len(line) for line in lines] == [width - room] * 7
    for line, number in zip(
        lines[1:], ("0.1026", "0.1367", "0.1367", "50,039", "2,900"), strict=False
    ):
        assert number in line
    assert "a note" not in "".join(lines)


def test_a_panel_has_sparklines_on_one_axis():
    blocks = [
        [character for character in line if "▁" <= character <= "█"]
        for line in shown(view(*TRAINING), width=100).splitlines()[1:5]
    ]
    assert [len(line) for line in blocks] == [30] * 4
    assert "".join(blocks[1]) == "█" * 10 + "▃" * 10 + "▁" * 10
    assert blocks[0] == sorted(blocks[0], reverse=True)


def test_an_evaluation_is_a_note_in_the_panel_and_leaves_its_numbers():
    task = view(*TRAINING)
    task.update(2900, 0, "evaluating 3/9")
    text = shown(task, width=100)
    assert "2,900/4,000  evaluating 3/9" in text
    assert "left" not in text
    assert "0.1026" in text


def test_a_low_terminal_has_one_line():
    (line,) = shown(view(*TRAINING), width=100, height=9).splitlines()
    assert "training" in line
    assert "2,900/4,000" in line


def test_a_console_of_another_encoding_has_a_panel_of_its_characters():
    text = shown(view(*TRAINING), width=80, encoding="cp1252")
    assert "loss" in text
    assert "#" in text
    assert text.isascii()


@pytest.mark.parametrize("width", WIDTHS)
def test_samples_are_in_boxes_and_cannot_control_the_terminal(width, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setenv("COLUMNS", str(width))
    RichDisplay(stream).samples(SAMPLES)
    text, lines = stream.getvalue(), stream.getvalue().splitlines()
    assert "\x1b" not in text
    assert all(cell_len(line) <= width for line in lines)
    for title, sample in SAMPLES if width > 20 else ():
        assert title in text
        assert rf"{sample[0]} ROMEO:\x1b[2J" in text
    assert lines[0].count("╭") == (3 if width == 200 else 1)


def test_markup_in_samples_and_tables_is_not_interpreted():
    assert "thou [b]art[/b]" in shown(sample_box(*SAMPLES[0]), width=100)
    table = shown(closing_table([{"a": "[b]x[/b]", "b": "\x1b[2J"}, {"c": "d"}]), width=60)
    assert [line.strip("│ ").split() for line in table.splitlines()[1:-1]] == [
        ["a", "│", "[b]x[/b]"],
        ["b", "│", r"\x1b[2J"],
        ["c", "│", "d"],
    ]


@example([0.0, 5e-324], 1)
@given(st.lists(st.none() | st.floats(-10, 10), min_size=1, max_size=300), st.integers(1, 200))
def test_a_sparkline_has_a_block_for_each_value_up_to_its_width(values, width):
    known = [value for value in values if value is not None]
    if not known:
        return
    line = sparkline(values, min(known), width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set(" ▁▂▃▄▅▆▇█")
    if None not in values:
        assert " " not in line


def test_the_first_losses_do_not_flatten_a_sparkline():
    assert sparkline([100.0, *map(float, range(20, 0, -1))], 1.0, 30)[-9:] == "▄▄▃▃▂▂▂▁▁"


def test_a_task_does_not_hide_the_cursor_which_a_stopped_process_could_not_show(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with RichDisplay(stream).task("training") as update:
        update(1, 2)
        written = stream.getvalue()
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")
