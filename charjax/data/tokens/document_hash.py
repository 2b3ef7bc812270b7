"""Hashes of documents, by which each stays in its split whatever is added to a text."""

from __future__ import annotations

import zlib
from array import array
from itertools import pairwise

import numpy as np
from jaxtyping import UInt32

from charjax.data.reading.documents import Piece

HASHED = 1 << 16  # characters at the beginning of a document, of which the hash is taken


class DocumentHasher:
    """Hashes the documents of a text that comes in pieces.

    A hash is the CRC-32 of the UTF-8 of a document's first `HASHED` characters, without the line
    ends around them.
    """

    def __init__(self) -> None:
        """Hashes nothing."""
        self._hashes = array("L")
        self._last: str | None = None  # the beginning of the document that has not ended

    def add(self, piece: Piece) -> None:
        """Hashes the documents that end in a piece, but for one whose beginning was not added."""
        edges = [*piece.starts, len(piece.text)]
        self.extend(piece.text[: edges[0]])
        if piece.starts:
            texts = [piece.text[a : min(b, a + HASHED)] for a, b in pairwise(edges)]
            before = [] if self._last is None else [self._last]
            self._last = texts.pop()
            self._hashes.extend(map(_hash, before + texts))

    def extend(self, text: str) -> None:
        """Adds text to the last document."""
        if self._last is not None:
            self._last += text[: HASHED - len(self._last)]

    @property
    def needs_more(self) -> bool:
        """Whether what follows in the last document changes its hash."""
        return self._last is not None and len(self._last) < HASHED

    def finish(self) -> UInt32[np.ndarray, " documents"]:
        """The hashes of all documents."""
        if self._last is not None:
            self._hashes.append(_hash(self._last))
        self._last = None
        return np.array(self._hashes, np.uint32)


def _hash(text: str) -> int:
    return zlib.crc32(text.strip("\r\n").encode())
