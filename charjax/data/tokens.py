"""Text as arrays of tokens: small integers that number its characters as they first appear."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int64, UInt

from charjax.data.documents import Piece
from charjax.data.runs import Runs
from charjax.errors import InputError

BOUNDARY = ""  # stands in an alphabet for the document boundary
_CHUNK = 1 << 18  # tokens at a time, to bound the memory of intermediate arrays
_MAX_GROWTH = 1 << 24  # tokens for which a buffer makes room at a time
_CODE_POINTS = 0x110000  # in Unicode


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

    def counts(self) -> Int64[np.ndarray, " alphabet"]:
        """How often each token occurs."""
        zeros = np.zeros(len(self.alphabet), np.int64)
        return sum((np.bincount(chunk, minlength=len(zeros)) for chunk in self._chunks()), zeros)

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

    def reordered(self, order: Int[np.ndarray, " documents"]) -> EncodedText:
        """The same text with its documents in another order."""
        end = len(self.tokens) - (BOUNDARY in self.alphabet)
        runs, tokens = Runs.reordered(self.starts, end, order), np.empty_like(self.tokens)
        edges = pairwise([*runs.begins.tolist(), len(tokens)])
        for (begin, run_end), source in zip(edges, runs.sources.tolist(), strict=True):
            tokens[begin:run_end] = self.tokens[source : source + run_end - begin]
        return EncodedText(tokens, self.alphabet, runs.document_starts)


class TextEncoder:
    """Encodes the pieces of a text, and numbers its characters as they first appear.

    Attributes:
      alphabet: the character of each token; `BOUNDARY`, the first one, if there are boundaries.
      num_chars: characters encoded, without boundaries.
      num_tokens: tokens encoded.
    """

    def __init__(self, origin: str, *, boundary: bool) -> None:
        """Encodes nothing.

        Args:
          origin: where the text comes from, for messages.
          boundary: whether a boundary token comes before each document.
        """
        self.alphabet: list[str] = [BOUNDARY] if boundary else []
        self.num_chars = self.num_tokens = 0
        self._origin, self._boundary = origin, boundary
        self._known = b""  # the characters below U+0100 with a token, as latin-1
        self._tokens = self._make_table()

    def encode(
        self, piece: Piece
    ) -> tuple[UInt[np.ndarray, " tokens"], Int64[np.ndarray, " documents"]]:
        """The tokens of a piece, and the positions in the text of its documents' first tokens.

        Raises:
          InputError: a character is half of a surrogate pair.
        """
        tokens = self._encode(piece.text)
        starts = np.array(piece.starts, np.int64)
        if self._boundary:
            tokens = np.insert(tokens, starts, tokens.dtype.type(0))
            starts += np.arange(len(starts))
        starts += self.num_tokens
        self.num_chars += len(piece.text)
        self.num_tokens += len(tokens)
        return tokens, starts

    def end(self) -> UInt[np.ndarray, " tokens"]:
        """The boundary token after the last document; nothing without boundaries."""
        self.num_tokens += int(self._boundary)
        return np.zeros(int(self._boundary), np.uint8)

    def _encode(self, text: str) -> UInt[np.ndarray, " tokens"]:
        try:
            latin = text.encode("latin-1")  # the fast way: bytes.translate
        except UnicodeEncodeError:
            return self._encode_points(text)
        if unknown := latin.translate(None, self._known):
            self._learn(dict.fromkeys(unknown.decode("latin-1")))
        if len(self.alphabet) > 1 << 8:
            return self._tokens[np.frombuffer(latin, np.uint8)]
        table = self._tokens[:256].astype(np.uint8).tobytes()
        return np.frombuffer(latin.translate(table), np.uint8)

    def _encode_points(self, text: str) -> UInt[np.ndarray, " tokens"]:
        try:
            units = text.encode("utf-16-le")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{self._origin}: character {self.num_chars + error.start} is half of a surrogate "
                "pair, not a character; correct the file or its encoding"
            ) from error
        if len(units) == 2 * len(text):
            points = np.frombuffer(units, "<u2")
        else:  # some are beyond U+FFFF, pairs of units
            points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        tokens = self._tokens.take(points)
        if (unknown := tokens == len(self.alphabet)).any():
            self._learn(dict.fromkeys(map(chr, points[unknown].tolist())))
            tokens = self._tokens.take(points)
        return tokens.astype(token_dtype(len(self.alphabet)), copy=False)

    def _learn(self, characters: dict[str, None]) -> None:
        """Gives characters the next tokens."""
        self.alphabet.extend(characters)
        self._known += "".join(c for c in characters if c < "\u0100").encode("latin-1")
        self._tokens = self._make_table()

    def _make_table(self) -> UInt[np.ndarray, " points"]:
        """The token of every code point; the number of tokens for one that has none."""
        count = len(self.alphabet)
        table = np.full(_CODE_POINTS, count, token_dtype(count + 1))
        first = int(self._boundary)
        table[[ord(character) for character in self.alphabet[first:]]] = np.arange(first, count)
        return table


class TokenBuffer:
    """Tokens appended to an array that grows in place, so that none is in memory twice."""

    def __init__(self) -> None:
        """Has no tokens."""
        self._array, self._size = np.empty(0, np.uint8), 0

    def append(self, tokens: UInt[np.ndarray, " n"]) -> None:
        """Adds tokens; changes the dtype if theirs is larger."""
        end = self._size + len(tokens)
        if tokens.itemsize > self._array.itemsize:
            self._array = self._array.astype(tokens.dtype)
        if end > len(self._array):  # the system moves the pages of a large array, and copies none
            self._array.resize(end + min(end, _MAX_GROWTH), refcheck=False)
        self._array[self._size : end] = tokens
        self._size = end

    def array(self) -> UInt[np.ndarray, " tokens"]:
        """All tokens; none can be added then."""
        self._array.resize(self._size, refcheck=False)
        return self._array


def encode_pieces(
    origin: str, pieces: Iterable[Piece], *, boundary: bool, is_one: bool = False
) -> EncodedText:
    """Encodes a text into memory.

    Args:
      origin: as for `TextEncoder`, like `boundary` and the errors.
      pieces: of the text.
      boundary: whether a boundary token comes before each document, and after the last one.
      is_one: whether the text is one document, though no piece says that it starts there.
    """
    encoder, tokens = TextEncoder(origin, boundary=boundary), TokenBuffer()
    starts = [np.zeros(0, np.int64)]
    start = [Piece("", (0,))] if is_one else []
    for piece in itertools.chain(start, pieces):
        encoded, first_tokens = encoder.encode(piece)
        tokens.append(encoded)
        starts.append(first_tokens)
    tokens.append(encoder.end())
    return EncodedText(tokens.array(), tuple(encoder.alphabet), np.concatenate(starts))


def token_dtype(num_tokens: int) -> np.dtype[Any]:
    """The smallest unsigned dtype for that many different tokens."""
    bits = 8 if num_tokens <= 1 << 8 else 16 if num_tokens <= 1 << 16 else 32
    return np.dtype(f"uint{bits}")


def join_arrays(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenates arrays and empties the list, so that nothing is in memory twice."""
    dtype = np.result_type(np.uint8, *{part.dtype for part in parts})
    joined = np.empty(sum(map(len, parts)), dtype)
    begin = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        joined[begin : begin + len(part)] = part
        begin += len(part)
    return joined


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
