"""Encodes text into tokens, piece by piece, and learns the alphabet on the way."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64, UInt

from charjax.data.reading.documents import Piece
from charjax.data.tokens.encoded_text import BOUNDARY, EncodedText, token_dtype
from charjax.errors import InputError

_MAX_GROWTH = 1 << 24  # tokens for which a buffer makes room at a time
_CODE_POINTS = 0x110000  # in Unicode


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
