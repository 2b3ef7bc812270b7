"""Text as arrays of tokens: small integers that number its characters as they first appear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int64, UInt, UInt32

from charjax.data.reading.documents import Piece
from charjax.data.tokens.document_hash import DocumentHasher
from charjax.data.tokens.runs import Runs

BOUNDARY = ""  # stands in an alphabet for the document boundary
_CHUNK = 1 << 18  # tokens at a time, to bound the memory of intermediate arrays


class EncodedText(NamedTuple):
    """A text in memory, as tokens.

    Attributes:
      tokens: with boundary tokens before each document and after the last one, if there are any.
      alphabet: the character of each token; `BOUNDARY` for the document boundary.
      starts: the positions in `tokens` where documents start, ascending from 0.
    """

    tokens: UInt[np.ndarray, " tokens"]
    alphabet: tuple[str, ...]
    starts: Int64[np.ndarray, " documents"]

    @property
    def num_chars(self) -> int:
        """How many characters it has."""
        return len(self.tokens) - (BOUNDARY in self.alphabet) * (len(self.starts) + 1)

    def text(self) -> str:
        """The characters, without boundaries."""
        return "".join(self._texts())

    def pieces(self) -> Iterator[Piece]:
        """The characters in pieces, with the documents that start in each."""
        starts, begin = self.document_starts(), 0
        for text in self._texts():
            first, last = np.searchsorted(starts, [begin, begin + len(text)])
            yield Piece(text, (starts[first:last] - begin).tolist())
            begin += len(text)

    def documents(self) -> Iterator[str]:
        """The characters of each document."""
        for begin, end in pairwise([*self.starts.tolist(), len(self.tokens)]):
            yield self._replace(tokens=self.tokens[begin:end]).text()

    def counts(self) -> Counter[str]:
        """How often each character of the alphabet occurs."""
        counts = np.zeros(len(self.alphabet), np.int64)
        for chunk in self._chunks():
            counts += np.bincount(chunk, minlength=len(counts))
        return Counter(dict(zip(self.alphabet, counts.tolist(), strict=True)))

    def _chunks(self) -> Iterator[UInt[np.ndarray, " n"]]:
        return (self.tokens[i : i + _CHUNK] for i in range(0, len(self.tokens), _CHUNK))

    def _texts(self) -> Iterator[str]:
        points = np.array([ord(character or "\0") for character in self.alphabet], "<u4")
        kept = np.array([bool(character) for character in self.alphabet])
        chunks = (chunk[kept[chunk]] for chunk in self._chunks())
        return (points[chunk].tobytes().decode("utf-32-le") for chunk in chunks)

    def document_starts(self) -> Int64[np.ndarray, " documents"]:
        """The positions in `text()` where documents start."""
        has_boundaries = BOUNDARY in self.alphabet
        return self.starts - has_boundaries * np.arange(len(self.starts))

    def first_characters(self) -> list[str]:
        """The distinct characters, in the order of their first appearance."""
        found: dict[int, None] = {}
        for chunk in self._chunks():
            if len(found) == len(self.alphabet):
                break
            found |= dict.fromkeys(chunk.tolist())
        return [self.alphabet[token] for token in found if self.alphabet[token]]

    def recoded(
        self, characters: Sequence[str], num_ids: int, unk_id: int | None = None
    ) -> EncodedText:
        """The same text with the ids of a vocabulary; uses the memory of this one if it can.

        The arguments are those of `translation`.
        """
        table = translation(self.alphabet, characters, num_ids, unk_id)
        is_same = table.dtype == self.tokens.dtype and np.array_equal(table, np.arange(len(table)))
        reuse = table.dtype == self.tokens.dtype and self.tokens.flags.writeable
        ids = self.tokens if is_same or reuse else np.empty(len(self.tokens), table.dtype)
        for begin in range(0, 0 if is_same else len(ids), _CHUNK):
            chunk = slice(begin, begin + _CHUNK)
            # All tokens are in the table: "clip" only spares a pass over them.
            np.take(table, self.tokens[chunk], out=ids[chunk], mode="clip")
        boundary = (BOUNDARY,) if BOUNDARY in self.alphabet else ()
        return EncodedText(ids, (*characters, *boundary), self.starts)

    def document_hashes(self) -> UInt32[np.ndarray, " documents"]:
        """The hashes of all documents, see `charjax.data.tokens.document_hash`."""
        hasher = DocumentHasher()
        for piece in self.pieces():
            hasher.add(piece)
        return hasher.finish()

    def reordered(self, order: Int[np.ndarray, " documents"]) -> EncodedText:
        """The same text with its documents in another order."""
        end = len(self.tokens) - (BOUNDARY in self.alphabet)
        runs, tokens = Runs.reordered(self.starts, end, order), np.empty_like(self.tokens)
        edges = pairwise([*runs.begins.tolist(), len(tokens)])
        for (begin, run_end), source in zip(edges, runs.sources.tolist(), strict=True):
            tokens[begin:run_end] = self.tokens[source : source + run_end - begin]
        return EncodedText(tokens, self.alphabet, runs.document_starts)


def token_dtype(num_tokens: int) -> np.dtype[Any]:
    """The smallest unsigned dtype for that many different tokens."""
    bits = 8 if num_tokens <= 1 << 8 else 16 if num_tokens <= 1 << 16 else 32
    return np.dtype(f"uint{bits}")


def translation(
    alphabet: Sequence[str], characters: Sequence[str], num_ids: int, unk_id: int | None = None
) -> np.ndarray:
    """For each token of an alphabet its id in a vocabulary.

    Args:
      alphabet: the character of each token.
      characters: those of the vocabulary; the document boundary follows them.
      num_ids: the ids of the vocabulary.
      unk_id: that of characters which the vocabulary does not have; None: it has all.
    """
    ids = {character: i for i, character in enumerate(characters)} | {BOUNDARY: len(characters)}
    return np.array([ids.get(character, unk_id) for character in alphabet], token_dtype(num_ids))
