"""Generated text cannot control a terminal, and is unchanged elsewhere."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.runtime.terminal import TextWriter, escape_controls


class Stream(io.TextIOWrapper):
    """A text stream into memory that may call itself a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def written(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode("utf-8")


def write(pieces, *, terminal):
    stream = Stream(terminal)
    writer = TextWriter(stream)
    for piece in pieces:
        writer.write(piece)
    writer.close()
    return stream.written()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;cGFzcw==\x07", r"\x1b]52;c;cGFzcw==\x07"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\x9b2J", r"\x9b2J"),
        ("over\rwrite", r"over\rwrite"),
        ("\u202eesrever", r"\u202eesrever"),
        ("a\tb\nc\r\nd é 日 😀", "a\tb\nc\r\nd é 日 😀"),
    ],
)
def test_control_characters_are_shown(text, shown):
    assert escape_controls(text) == shown


@given(st.text(st.characters(codec="utf-8")), st.integers(1, 5))
def test_pieces_are_written_as_the_whole(text, size):
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert write(pieces, terminal=False) == text
    assert write(pieces, terminal=True) == escape_controls(text) + "\n"
