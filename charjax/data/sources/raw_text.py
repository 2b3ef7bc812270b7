"""The undecoded bytes of a text, as its source gives them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import NamedTuple

# UTF-32 before UTF-16, whose little-endian mark it starts with.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class RawText(NamedTuple):
    """The undecoded bytes of a text.

    Attributes:
      origin: the path, or another name of the text for messages.
      blocks: the bytes, in blocks of any size.
      notices: warnings to the user about this file, without folders, as exports have them, too.
      offset: the position in the file where the bytes begin.
    """

    origin: str
    blocks: Iterable[bytes]
    notices: tuple[str, ...] = ()
    offset: int = 0
