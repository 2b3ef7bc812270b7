from __future__ import annotations

import io
import logging
import os
import subprocess
import sys

import pytest

from charjax.runtime import display, status
from charjax.runtime.display import (
    LastingStream,
    PlainDisplay,
    counted,
    make_display,
    show_messages,
)


@pytest.fixture
def pipe(monkeypatch) -> io.StringIO:
    """A stream that has a line of progress every ten seconds, as for users."""
    monkeypatch.setattr(display, "_PLAIN_INTERVAL_S", 10.0)
    return io.StringIO()


def test_a_noun_agrees_with_its_number():
    shown = [counted(number, "line") for number in (0, 1, 2, 1000)]
    assert shown == ["0 lines", "1 line", "2 lines", "1,000 lines"]


def test_on_a_pipe_messages_and_texts_are_plain_lines():
    stream = io.StringIO()
    shown = make_display(stream)
    shown.report("[bold]a message[/bold] :heart:")
    shown.text("a text\nof two lines")
    assert stream.getvalue() == "[bold]a message[/bold] :heart:\na text\nof two lines\n"


def test_control_characters_of_messages_are_shown_on_a_terminal_alone(terminal):
    for stream, shown in ((terminal, "w\\x1b[2J: good\n"), (io.StringIO(), "w\x1b[2J: good\n")):
        PlainDisplay(stream).report("w\x1b[2J: good")
        assert stream.getvalue() == shown


def test_on_a_pipe_progress_is_a_line_every_ten_seconds(pipe, time_is):
    with make_display(pipe).task("training") as update:
        for done in range(1, 31):  # a step a second
            time_is(float(done))
            update(done, 100, "loss 2.0")
    lines = pipe.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"training {n}/100" for n in (10, 20, 30)]
    assert all("  loss 2.0  " in line for line in lines)
    # The first update is the start: 9 steps take 9 s, so 90 more take 90 s.
    assert lines[0].endswith("  1:30 left")


def test_on_a_pipe_the_time_left_of_a_resumed_task_counts_its_own_steps_alone(pipe, time_is):
    with make_display(pipe).task("training") as update:
        update(900, 1000)
        time_is(10.0)
        update(910, 1000)
    assert pipe.getvalue() == "training 910/1000    1:30 left\n"


def test_on_a_pipe_a_task_of_unknown_total_has_no_time_left(pipe, time_is):
    with make_display(pipe).task("downloading") as update:
        time_is(10.0)
        update(5)
    assert pipe.getvalue() == "downloading 5\n"


@pytest.mark.parametrize(
    ("seconds", "clock"),
    [(0.0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.9, "1:00:00"), (36061.0, "10:01:01")],
)
def test_times_are_formatted_as_hours_minutes_seconds(seconds, clock):
    assert status.clock(seconds) == clock


def test_in_a_terminal_markup_in_messages_and_texts_is_not_interpreted(terminal):
    shown = make_display(terminal)
    shown.report("a [red]message[/red] of :heart:")
    shown.text("KING:[bold]\nO :cat: " + "x" * 300)
    for part in ("a [red]message[/red] of :heart:", "KING:[bold]", "O :cat: " + "x" * 300):
        assert part in terminal.getvalue()


def test_a_terminal_that_is_said_to_have_no_columns_shows_messages(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    make_display(terminal).report("a message")
    assert terminal.getvalue() == "a message\n"


def test_in_a_terminal_a_progress_bar_is_shown_and_then_cleared(terminal):
    shown = make_display(terminal)
    with shown.task("training") as update:
        update(10, 40, "loss 2.0")
        shown.report("a message")
        update(30, 40, "loss 1.0")
    written = terminal.getvalue()
    for part in ("training", "30/40", "loss 1.0", "a message\n"):
        assert part in written
    assert written.endswith("\x1b[2K")  # the bar's line is cleared


def test_in_a_terminal_a_task_may_have_an_unknown_total(terminal):
    with make_display(terminal).task("downloading") as update:
        update(5)
    assert "5/?" in terminal.getvalue()


def test_messages_of_charjax_are_shown_by_the_innermost_display_alone(caplog):
    outer, inner = io.StringIO(), io.StringIO()
    with show_messages(make_display(outer)):
        logging.getLogger("charjax.data.corpus").info("100% read")
        with show_messages(make_display(inner)):
            logging.getLogger("charjax.checkpoint.steps").warning("a stray")
        logging.getLogger("charjax").info("done")
        logging.getLogger("another").warning("not ours")
    assert (outer.getvalue(), inner.getvalue()) == ("100% read\ndone\n", "a stray\n")
    assert caplog.messages == ["not ours"]


def test_the_messages_of_threads_may_end_in_any_order(caplog):
    logger, shown = logging.getLogger("charjax"), [io.StringIO() for _ in range(2)]
    first, second = (show_messages(make_display(stream)) for stream in shown)
    with first:
        second.__enter__()
    logger.info("still shown")
    second.__exit__(None, None, None)
    logger.warning("to others again")
    assert [stream.getvalue() for stream in shown] == ["", "still shown\n"]
    assert caplog.messages == ["to others again"]


def test_the_log_has_the_traceback_of_a_bug():
    shown = io.StringIO()
    with show_messages(PlainDisplay(shown)):
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            logging.getLogger("charjax.test").exception("a text could not be written")
    message, heading, *_, error = shown.getvalue().splitlines()
    assert message == "a text could not be written"
    assert heading.startswith("Traceback")
    assert error == "RuntimeError: broken"


def test_without_a_display_python_shows_the_warnings_alone():
    program = """
import logging
import charjax.runtime.display
logging.getLogger("charjax.x").info("an information")
logging.getLogger("charjax.x").warning("a warning")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "a warning\n")


def test_a_closed_pipe_raises_where_the_message_is_logged():
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with show_messages(make_display(Closed())), pytest.raises(BrokenPipeError):
        logging.getLogger("charjax").info("a message")


def test_a_stream_that_is_lost_is_told_of_once_and_silent_from_then_on():
    """A reader such as `head` ends, or the terminal is closed."""
    reader, writer = os.pipe()
    reasons = []
    with os.fdopen(writer, "w") as stream:
        display = make_display(LastingStream(stream, reasons.append))
        display.report("one")
        os.close(reader)
        for line in ("two", "three"):
            display.report(line)
        with display.task("training") as update:
            update(1, 2)
    assert reasons == ["Broken pipe"]
