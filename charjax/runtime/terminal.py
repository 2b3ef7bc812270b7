"""Text that is safe to show on a terminal."""

from __future__ import annotations

import re
import threading
from typing import Any

# C0 and C1 controls except newline and tab, and the bidirectional overrides and isolates. A
# carriage return stays in a line end, CR LF; alone it would overwrite the line.
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")


def escape_controls(text: str) -> str:
    r"""The text with control characters as escapes such as `\x1b`, which a terminal just shows."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def escape_hint(text: str) -> str:
    r"""A hint on a `\n` in an option, which a shell passes as two characters; else ""."""
    if not re.search(r"\\[ntr]", text):
        return ""
    return "a backslash is not an escape here; write $'\\n' in the shell for a line end"


class TextWriter:
    """Writes generated text to a text stream: escaped on a terminal, unchanged elsewhere.

    Another thread may close it, as before a signal ends the process; a terminal then shows no more.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._pending = stream, ""
        self._lock, self._is_closed = threading.Lock(), False

    def write(self, piece: str) -> None:
        """Writes a piece of text in UTF-8, at once."""
        with self._lock:
            if not self._is_closed:
                self._write(piece)

    def close(self) -> None:
        """Writes a carriage return that was held back, and ends the line on a terminal."""
        if self._stream.isatty():  # a write to a pipe may wait for its reader, with the lock
            with self._lock:
                self._is_closed = True
                self._stream.write(escape_controls(self._pending) + "\n")
                self._stream.flush()

    def _write(self, piece: str) -> None:
        if not self._stream.isatty():
            self._stream.buffer.write(piece.encode("utf-8"))
        else:
            piece = self._pending + piece
            # Only the next piece shows whether a carriage return is part of a line end.
            self._pending = "\r" if piece.endswith("\r") else ""
            self._stream.write(escape_controls(piece.removesuffix("\r")))
        self._stream.flush()
