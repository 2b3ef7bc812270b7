"""Features of the characters of a text that a unit of a model may track.

The value of a character uses only the text up to it, except that of a speaker's name, whose
colon is yet to come.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Int

# Of every character of a text: true or false, or a number.
Values: TypeAlias = Bool[np.ndarray, " chars"] | Int[np.ndarray, " chars"]

_MAX_NAME = 40  # characters of a speaker's name after its first
_SPEAKER = re.compile(rf"^[^\W\d_][^:\n]{{0,{_MAX_NAME}}}:$", re.MULTILINE)
_INDENTATION = re.compile(r"^[ \t]+", re.MULTILINE)
# What opens a quotation, and what ends it. Single quotes may be apostrophes.
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»"}


class Feature(NamedTuple):
    """A feature of characters.

    Attributes:
      name: in a few words.
      description: its value at a character, in one sentence.
      values: text -> the value of each of its characters.
    """

    name: str
    description: str
    values: Callable[[str], Values]


def line_position(text: str) -> Values:
    """The number of characters between the start of the line and each character."""
    positions = np.arange(len(text))
    line_starts = np.zeros(len(text), np.int64)
    is_line_end = np.array([character == "\n" for character in text], bool)
    line_starts[1:] = np.maximum.accumulate(np.where(is_line_end, positions + 1, 0))[:-1]
    return positions - line_starts


def quotes(text: str) -> Values:
    """Whether a quotation is open after each character. An empty line ends it, too."""
    inside = np.zeros(len(text), bool)
    closing = ""
    for i, character in enumerate(text):
        if character == closing or text[max(0, i - 1) : i + 1] == "\n\n":
            closing = ""
        elif not closing:
            closing = _QUOTES.get(character, "")
        inside[i] = bool(closing)
    return inside


def speakers(text: str) -> Values:
    """Whether each character is in a line that is a name and a colon, as in a play."""
    return _inside(_SPEAKER, text)


def capitals(text: str) -> Values:
    """Whether each character is an upper-case letter."""
    return np.array([character.isupper() for character in text], bool)


def digits(text: str) -> Values:
    """Whether each character is a decimal digit."""
    return np.array([character.isdecimal() for character in text], bool)


def indentation(text: str) -> Values:
    """The number of blanks at the start of the line, up to each character."""
    columns, blanks = line_position(text), _inside(_INDENTATION, text)
    counts = np.where(blanks, columns + 1, 0)
    # After its blanks a line keeps their number: that of the last blank.
    last_blank = np.maximum.accumulate(np.where(blanks, np.arange(len(text)), -1))
    in_line = last_blank >= np.arange(len(text)) - columns
    return np.where(in_line, counts[last_blank], 0)


FEATURES = (
    Feature("line position", "the number of characters since the line began", line_position),
    Feature("quotes", "whether a quotation is open", quotes),
    Feature("speaker names", "whether the line is a name and a colon", speakers),
    Feature("capitals", "whether the character is an upper-case letter", capitals),
    Feature("digits", "whether the character is a digit", digits),
    Feature("indentation", "the number of blanks at the start of the line", indentation),
)


def _inside(pattern: re.Pattern[str], text: str) -> Bool[np.ndarray, " chars"]:
    """Whether each character is in a match of the pattern."""
    inside = np.zeros(len(text), bool)
    for match in pattern.finditer(text):
        inside[match.start() : match.end()] = True
    return inside
