"""From token ids to text."""

from __future__ import annotations

import codecs

import numpy as np
from jaxtyping import Integer


class Decoder:
    """Incremental decoder: bytes of an incomplete character wait for the rest."""

    def __init__(self, codes: list[int], boundary_id: int | None, *, are_bytes: bool) -> None:
        """Has read nothing.

        Args:
          codes: the byte or the code point of each id.
          boundary_id: the id that stands for no character; None if there is none.
          are_bytes: whether the codes are bytes of UTF-8.
        """
        codec, dtype = ("utf-8", "u1") if are_bytes else ("utf-32-le", "<u4")
        self._codes, self._boundary_id = np.array(codes, dtype), boundary_id
        self._decoder = codecs.getincrementaldecoder(codec)(errors="replace")

    def decode(self, ids: Integer[np.ndarray, " n"]) -> str:
        """The text of these ids, without an incomplete character at the end.

        Raises:
          IndexError: an id is outside the vocabulary.
        """
        if ids.size and ids.min() < 0:  # numpy would count from the end
            raise IndexError(f"id {ids.min()} is negative")
        if self._boundary_id is not None:
            ids = ids[ids != self._boundary_id]
        return self._decoder.decode(self._codes[ids].tobytes())

    @property
    def has_part(self) -> bool:
        """Whether the last character is incomplete."""
        return bool(self._decoder.getstate()[0])

    def flush(self) -> str:
        """U+FFFD if the last character is incomplete, else ""."""
        return self._decoder.decode(b"", final=True)
