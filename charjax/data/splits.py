"""The train, validation and test split of a text."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt32

from charjax.conditions import check_split
from charjax.data.packed.tokens import TokenIds
from charjax.data.shuffle import mix
from charjax.errors import InputError
from charjax.runtime.display import counted


class TokenSplit(NamedTuple):
    """A contiguous split of a text: its token ids, and the positions where documents start.

    Attributes:
      ids: token ids, in memory or packed.
      document_starts: positions in `ids`, ascending from 0.
      boundary_id: the id of the boundary token, which comes before each document and after the
        last one; None without boundary tokens.
    """

    ids: TokenIds
    document_starts: Int[np.ndarray, " documents"]
    boundary_id: int | None = None

    @property
    def num_targets(self) -> int:
        """How many tokens can be predicted: all but the first, which no token precedes."""
        return max(0, len(self.ids) - 1)


class Splits(NamedTuple):
    """The splits of a text, in the order of the text."""

    train: TokenSplit
    val: TokenSplit
    test: TokenSplit


def split(
    ids: TokenIds,
    document_starts: Int[np.ndarray, " documents"],
    fractions: tuple[float, ...],
    boundary_id: int | None = None,
    num_documents: Int[np.ndarray, " splits"] | None = None,
) -> Splits:
    """Splits a text into train, validation and test: contiguous views that cover all of it.

    A single document is cut exactly at the fractions. Several documents are not cut: the splits
    end at the document boundaries that are nearest to the fractions and leave no split empty, or
    have the given numbers of documents.

    Args:
      ids: the token ids of the text.
      document_starts: positions in `ids`, ascending from 0.
      fractions: of train, validation and test; they add up to 1.
      boundary_id: the id of the boundary token, which must be the first and the last of `ids`; the
        one between two splits belongs to both. None without boundary tokens.
      num_documents: how many documents each split has; None: as the fractions say.

    Raises:
      InputError: a split is empty although its fraction is not 0; or the fractions are not three,
        or do not add up to 1.
    """
    check_split(fractions)
    n, (train, val, test) = len(ids) - int(boundary_id is not None), fractions
    total = train + val + test  # 1 up to rounding
    cuts = np.array([int(n * (train / total)), int(n * ((train + val) / total))])
    boundaries = np.append(document_starts, n)
    if num_documents is not None:
        cuts = boundaries[np.cumsum(num_documents)[:2]]
    elif len(document_starts) > 1:
        train_end, val_end = (int(np.abs(boundaries - cut).argmin()) for cut in cuts)
        last = len(document_starts) - (test > 0)
        train_end = max(1, min(train_end, last - (val > 0)))
        cuts = boundaries[[train_end, max(train_end + (val > 0), min(val_end, last))]]
    text = TokenSplit(ids, document_starts, boundary_id)
    splits = Splits(*(_cut(text, *edges) for edges in pairwise([0, *cuts.tolist(), n])))
    for name, part, fraction in zip(Splits._fields, splits, fractions, strict=True):
        if fraction and not part.ids.size:
            raise InputError(
                f"config.data.split={fractions}: the {name} split is empty; the text has "
                f"{counted(n, 'character')} in {counted(len(document_starts), 'document')}; give "
                "more text or a larger fraction"
            )
    return splits


def split_numbers(
    hashes: UInt32[np.ndarray, " documents"], fractions: tuple[float, ...]
) -> Int[np.ndarray, " documents"]:
    """The split of each document: 0 is train, 1 validation, 2 test.

    Args:
      hashes: of the documents.
      fractions: of the splits, which add up to 1.
    """
    ends = np.cumsum(fractions)
    limits = 2.0**32 * ends[:2] / ends[2]
    uniform = mix(hashes.astype(np.uint64)) >> np.uint64(32)
    return np.searchsorted(limits, uniform, side="right").astype(np.int8)


def _cut(text: TokenSplit, begin: int, end: int) -> TokenSplit:
    """The split from `begin` to `end`, and the boundary token at `end` if there is one."""
    starts = text.document_starts
    if begin == end:
        return TokenSplit(text.ids[:0], starts[:0], text.boundary_id)
    first, last = np.searchsorted(starts, begin, "right"), np.searchsorted(starts, end)
    starts = np.concatenate([np.zeros(1, np.int64), starts[first:last] - begin])
    ends_document = text.boundary_id is not None and text.ids[end] == text.boundary_id
    return TokenSplit(text.ids[begin : end + int(ends_document)], starts, text.boundary_id)
