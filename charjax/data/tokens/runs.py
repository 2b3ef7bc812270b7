"""A text whose documents are in another order, as runs of tokens that stay together."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64


class Runs(NamedTuple):
    """The runs of tokens of which a reordered text consists.

    Attributes:
      begins: the positions in the reordered text where they begin, ascending from 0.
      sources: the positions in the text where they begin.
      document_starts: the positions in the reordered text where documents start.
    """

    begins: Int64[np.ndarray, " runs"]
    sources: Int64[np.ndarray, " runs"]
    document_starts: Int64[np.ndarray, " documents"]

    @classmethod
    def reordered(
        cls,
        starts: Int64[np.ndarray, " documents"],
        end: int,
        order: Int[np.ndarray, " documents"],
    ) -> Runs:
        """The runs of a text with its documents in another order.

        Args:
          starts: the positions where the documents start.
          end: where the last one ends. What follows stays at the end.
          order: the numbers of the documents in the new order.
        """
        lengths = np.diff(np.append(starts, end))[order]
        new_starts = np.cumsum(lengths) - lengths
        is_first = np.diff(order, prepend=-2) != 1  # of its run
        begins = np.append(new_starts[is_first], end)
        return cls(begins, np.append(starts[order[is_first]], end), new_starts)

    def sha256(self) -> str:
        """A digest of the order."""
        return hashlib.sha256(self.begins.tobytes() + self.sources.tobytes()).hexdigest()

    def positions(self, positions: Int64[np.ndarray, " *shape"]) -> Int64[np.ndarray, " *shape"]:
        """The positions in the text of these positions in the reordered text."""
        run = np.searchsorted(self.begins, positions, side="right") - 1
        return np.asarray(positions - self.begins[run] + self.sources[run])
