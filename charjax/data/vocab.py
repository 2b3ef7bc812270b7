"""Symbols and their ids, both ways."""

from __future__ import annotations

import codecs
import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from charjax.errors import InputError

_CHUNK = 1 << 20  # characters turned into ids at a time, to bound the memory on the way
_POINTS = 0x110000  # Unicode has as many code points
_LISTED = 8  # unknown characters that an error message names


@dataclass(frozen=True)
class Vocab:
    """The symbols that a model knows; the id of a symbol is its position.

    Attributes:
      symbols: distinct characters. With bytes as the unit, byte b is the character U+00b.
      unit: "codepoint" or "byte": what one symbol is.
      unk: whether one more id follows the symbols: [UNK], for characters never seen.
    """

    symbols: tuple[str, ...]
    unit: str
    unk: bool

    def __post_init__(self) -> None:
        if self.unit not in ("codepoint", "byte"):
            raise InputError(f"vocabulary: unit={self.unit!r} must be codepoint or byte")
        if not self.symbols:
            raise InputError("vocabulary: it has no symbols; give a text with characters in it")
        if any(len(symbol) != 1 for symbol in self.symbols):
            raise InputError("vocabulary: every symbol must be one character")
        if len(set(self.symbols)) != len(self.symbols):
            raise InputError("vocabulary: a symbol stands in it twice")
        _check_surrogates("".join(self.symbols))
        if self.unit == "byte" and max(self.symbols) > "\xff":
            raise InputError("vocabulary: a symbol is no byte, though unit=byte")

    @classmethod
    def from_text(cls, text: str, *, order: str, unit: str, unk: bool) -> Vocab:
        """The vocabulary of a corpus.

        Args:
          text: as `Corpus.text`: one character a symbol, for both units.
          order: "sorted" by code point, or by first "appearance".
          unit: "codepoint" or "byte".
          unk: whether to reserve [UNK].

        Raises:
          InputError: the text is empty, or not made of such symbols.
        """
        symbols = sorted(set(text)) if order == "sorted" else dict.fromkeys(text)
        return cls(tuple(symbols), unit, unk)

    def __len__(self) -> int:
        """The number of ids, [UNK] included."""
        return len(self.symbols) + self.unk

    @property
    def unk_id(self) -> int | None:
        """The id of [UNK], the last one; None where none is reserved."""
        return len(self.symbols) if self.unk else None

    @property
    def start(self) -> int:
        """The id that is fed before an empty prompt: of newline, else of the blank, else 0."""
        known = (symbol for symbol in ("\n", " ") if symbol in self.symbols)
        return self.symbols.index(next(known, self.symbols[0]))

    def encode(self, text: str, *, unknown: str = "error") -> Int[np.ndarray, " n"]:
        """The int32 ids of what a person wrote; with bytes as the unit, of its UTF-8.

        Args:
          text: any text.
          unknown: "error", or "unk" to take [UNK] for characters outside the vocabulary.

        Raises:
          InputError: characters are unknown, or half of a surrogate pair.
        """
        if self.unit == "byte":
            _check_surrogates(text)
            text = text.encode("utf-8").decode("latin-1")
        return self.encode_symbols(text, unknown=unknown)

    def encode_symbols(self, text: str, *, unknown: str = "error") -> Int[np.ndarray, " n"]:
        """The int32 ids of a corpus' text, in which every character is a symbol.

        Args:
          text: as `Corpus.text`.
          unknown: as for `encode`.

        Raises:
          InputError: characters are unknown, or half of a surrogate pair.
        """
        _check_surrogates(text)
        ids = np.empty(len(text), np.int32)
        for begin in range(0, len(text), _CHUNK):
            piece = text[begin : begin + _CHUNK].encode("utf-32-le")
            ids[begin : begin + _CHUNK] = self._ids[np.frombuffer(piece, "<u4")]
        missing = np.flatnonzero(ids < 0)
        if missing.size:
            if unknown != "unk" or self.unk_id is None:
                raise InputError(self._unknown_message(Counter(text[i] for i in missing)))
            ids[missing] = self.unk_id
        return ids

    def decode(self, ids: Int[np.ndarray, " n"]) -> str:
        """The text of ids; [UNK] and bytes that are no UTF-8 become U+FFFD.

        Raises:
          IndexError: an id is outside the vocabulary.
        """
        decoder = self.decoder()
        return decoder.decode(ids) + decoder.flush()

    def decoder(self) -> Decoder:
        """A decoder for ids that arrive piece by piece."""
        return Decoder(self)

    def to_json(self) -> dict[str, Any]:
        """The vocabulary as a JSON object: `symbols` (one string), `unit` and `unk`."""
        return {"symbols": "".join(self.symbols), "unit": self.unit, "unk": self.unk}

    @classmethod
    def from_json(cls, values: object) -> Vocab:
        """The vocabulary that `to_json` wrote.

        Raises:
          InputError: the object is no vocabulary.
        """
        types = {"symbols": str, "unit": str, "unk": bool}
        if not isinstance(values, Mapping) or values.keys() != types.keys():
            raise InputError(f"vocabulary: must be a JSON object with {', '.join(types)}")
        for name, wanted in types.items():
            if type(values[name]) is not wanted:
                raise InputError(f"vocabulary: {name} must be of type {wanted.__name__}")
        return cls(tuple(values["symbols"]), values["unit"], values["unk"])

    @functools.cached_property
    def _ids(self) -> Int[np.ndarray, " points"]:
        """The id of every code point, or -1."""
        ids = np.full(_POINTS, -1, np.int32)
        ids[[ord(symbol) for symbol in self.symbols]] = np.arange(len(self.symbols))
        return ids

    def _unknown_message(self, counts: Counter[str]) -> str:
        listed = ", ".join(
            f"{self._name(symbol)} ({count}x)" for symbol, count in counts.most_common(_LISTED)
        )
        more = f" and {len(counts) - _LISTED} more" if len(counts) > _LISTED else ""
        remedy = "pass --unknown=unk" if self.unk else "train with config.data.unk=True"
        return f"not in the vocabulary: {listed}{more}; remove them, or {remedy}"

    def _name(self, symbol: str) -> str:
        if self.unit == "byte":
            return f"byte 0x{ord(symbol):02X}"
        return f"U+{ord(symbol):04X} {symbol!r}"


class Decoder:
    """Ids to text, piece by piece: a character whose bytes are split waits for the rest."""

    def __init__(self, vocab: Vocab) -> None:
        points = [ord(symbol) for symbol in vocab.symbols]
        if vocab.unit == "byte":
            codec, unknown, dtype = "utf-8", 0xFF, "u1"  # 0xFF is never part of UTF-8
        else:
            codec, unknown, dtype = "utf-32-le", 0xFFFD, "<u4"
        self._codes = np.array(points + [unknown] * vocab.unk, dtype)
        self._decoder = codecs.getincrementaldecoder(codec)(errors="replace")

    def decode(self, ids: Int[np.ndarray, " n"]) -> str:
        """The text that these ids complete.

        Raises:
          IndexError: an id is outside the vocabulary.
        """
        if ids.size and ids.min() < 0:  # numpy would count from the end
            raise IndexError(f"id {ids.min()} is negative")
        return self._decoder.decode(self._codes[ids].tobytes())

    def flush(self) -> str:
        """U+FFFD where a character is left incomplete, else nothing."""
        return self._decoder.decode(b"", final=True)


def check_ids(ids: Int[np.ndarray, " n"], symbols: int) -> None:
    """Raises InputError for an id of no symbol: XLA would take another one in silence."""
    if ids.size and not 0 <= ids.min() <= ids.max() < symbols:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise InputError(f"id {wrong}: the model has {symbols} symbols, from 0 to {symbols - 1}")


def _check_surrogates(text: str) -> None:
    try:
        for begin in range(0, len(text), _CHUNK):
            text[begin : begin + _CHUNK].encode("utf-8")
    except UnicodeEncodeError as error:
        point = ord(error.object[error.start])
        raise InputError(
            f"character {begin + error.start} of the text is U+{point:04X}, half of a surrogate "
            "pair: the text was not valid UTF-8; mend its encoding"
        ) from error
