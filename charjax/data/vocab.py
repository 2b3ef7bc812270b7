"""The vocabulary: encodes text to token ids, and decodes them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int, Integer

from charjax import schema
from charjax.data.reading.units import check_text, text_of_unit
from charjax.data.tokens.decoder import Decoder
from charjax.data.tokens.ids import as_ids
from charjax.errors import InputError
from charjax.runtime.display import listed

_CHUNK = 1 << 20  # characters encoded at a time, to bound the memory of intermediate arrays
_CODE_POINTS = 0x110000  # in Unicode

T = TypeVar("T")


@dataclass(frozen=True)
class Vocab:
    """The tokens of a model: ids 0, 1, ... are the characters, then come the special tokens.

    Attributes:
      characters: distinct characters by id; for bytes, those of `bytes_to_text`.
      unit: what a character is, "codepoint" or "byte".
      unk: whether there is [UNK], which stands for all other characters; it has the last id.
      boundary: whether there is a document boundary, the token read before the first
        character of a document and predicted after the last; its id follows the characters.
    """

    characters: tuple[str, ...]
    unit: str
    unk: bool
    boundary: bool = False

    def __post_init__(self) -> None:
        if self.unit not in ("codepoint", "byte"):
            raise InputError(f"vocabulary: unit={self.unit!r} must be codepoint or byte")
        if not self.characters:
            raise InputError("vocabulary: it is empty; give a text with characters in it")
        if not all(isinstance(c, str) and len(c) == 1 for c in self.characters):
            raise InputError("vocabulary: every entry must be one character")
        if len(set(self.characters)) != len(self.characters):
            raise InputError("vocabulary: a character occurs twice")
        check_text("".join(self.characters))
        if self.unit == "byte" and max(self.characters) > "\xff":
            raise InputError("vocabulary: a character is not a byte, though unit=byte")

    @classmethod
    def from_text(
        cls,
        text: str,
        *,
        order: str,
        unit: str,
        unk: bool,
        boundary: bool = False,
        known: Sequence[str] = (),
    ) -> Vocab:
        """The vocabulary of a corpus.

        Args:
          text: as in `Corpus.text`.
          order: "sorted" (by code point) or "appearance" (in the text).
          unit: "codepoint" or "byte".
          unk: whether to reserve [UNK].
          boundary: whether to reserve the document boundary.
          known: characters to add; with "appearance" they come last.

        Raises:
          InputError: the text is empty, or has characters that the unit does not allow; or there
            is no such order or unit.
        """
        if order not in ("sorted", "appearance"):
            raise InputError(f"vocabulary: order={order!r} must be sorted or appearance")
        found = dict.fromkeys(text) | dict.fromkeys(known)
        characters = sorted(found) if order == "sorted" else found
        return cls(tuple(characters), unit, unk, boundary)

    def __len__(self) -> int:
        """The number of token ids, the boundary and [UNK] included."""
        return len(self.characters) + int(self.boundary) + int(self.unk)

    @property
    def unk_id(self) -> int | None:
        """The id of [UNK]; None if there is none."""
        return len(self) - 1 if self.unk else None

    @property
    def boundary_id(self) -> int | None:
        """The id of the document boundary; None if there is none."""
        return len(self.characters) if self.boundary else None

    @property
    def start(self) -> int:
        """The id to feed if there is no prompt: the boundary, else newline, else space, else 0."""
        if self.boundary_id is not None:
            return self.boundary_id
        known = (character for character in ("\n", " ") if character in self.characters)
        return self.characters.index(next(known, self.characters[0]))

    def by_id(self, of_characters: Iterable[T], *, boundary: T, unk: T) -> list[T]:
        """A value for each id: of the characters, then of the boundary and [UNK] if present."""
        values = list(of_characters)
        if self.boundary:
            values.append(boundary)
        if self.unk:
            values.append(unk)
        return values

    def encode(self, text: str, *, unknown: str = "error") -> Int[np.ndarray, " n"]:
        """The int32 token ids of a text, one for each character, or each byte of its UTF-8.

        Args:
          text: any text.
          unknown: what to do with characters outside the vocabulary: "error", or "unk" to
            encode them as [UNK].

        Raises:
          InputError: a character is unknown, or half of a surrogate pair; or the text is no str.
        """
        check_text(text)
        return self.encode_corpus(text_of_unit(text, self.unit), unknown=unknown)

    def encode_prompt(self, prompt: str, *, unknown: str = "error") -> Int[np.ndarray, " n"]:
        """The ids to read before a text that continues a prompt, at least one.

        They are those of `encode`, after the document boundary if there is one. An empty prompt is
        the start token.
        """
        ids = self.encode(prompt, unknown=unknown)
        if ids.size and not self.boundary:
            return ids
        return np.concatenate([np.array([self.start], np.int32), ids])

    def encode_corpus(self, text: str, *, unknown: str = "error") -> Int[np.ndarray, " n"]:
        """The int32 token ids of a `Corpus.text`, in which bytes are characters already.

        Args:
          text: as in `Corpus.text`.
          unknown: as for `encode`.

        Raises:
          InputError: characters are unknown.
        """
        ids = np.empty(len(text), np.int32)
        for begin in range(0, len(text), _CHUNK):
            code_points = text[begin : begin + _CHUNK].encode("utf-32-le", "surrogatepass")
            ids[begin : begin + _CHUNK] = self._ids[np.frombuffer(code_points, "<u4")]
        missing = np.flatnonzero(ids < 0)
        if missing.size:
            if unknown != "unk" or self.unk_id is None:
                raise InputError(self.unknown_message(Counter(text[i] for i in missing)))
            ids[missing] = self.unk_id
        return ids

    def decode(self, ids: Integer[np.ndarray, " n"] | Sequence[int]) -> str:
        """The text of token ids. [UNK] and invalid UTF-8 become U+FFFD; boundaries are left out.

        Raises:
          IndexError: an id is outside the vocabulary.
          InputError: as `as_ids`.
        """
        decoder = self.decoder()
        return decoder.decode(as_ids(ids)) + decoder.flush()

    def utf8_bytes(self, ids: Integer[np.ndarray, " n"]) -> int | None:
        """The bytes of the UTF-8 of token ids; None if [UNK] is among them.

        A document boundary has none.

        Raises:
          IndexError: an id is too large.
        """
        if self.unk_id is not None and (ids == self.unk_id).any():
            return None
        is_byte = self.unit == "byte"
        sizes = [1 if is_byte else len(character.encode()) for character in self.characters]
        return int(np.array(self.by_id(sizes, boundary=0, unk=0))[ids].sum())

    def decoder(self) -> Decoder:
        """An incremental decoder, for ids that arrive in chunks."""
        is_byte = self.unit == "byte"
        unknown = 0xFF if is_byte else 0xFFFD  # 0xFF is never part of UTF-8
        codes = self.by_id(map(ord, self.characters), boundary=0, unk=unknown)
        return Decoder(codes, self.boundary_id, are_bytes=is_byte)

    def to_json(self) -> dict[str, Any]:
        """A JSON object of `symbols` (all characters in one string), `unit`, `unk`, `boundary`.

        `boundary` is written only if it is true: older runs have no such key.
        """
        values = {"symbols": "".join(self.characters), "unit": self.unit, "unk": self.unk}
        return values | ({"boundary": True} if self.boundary else {})

    @classmethod
    def from_json(cls, values: object) -> Vocab:
        """The vocabulary that `to_json` wrote.

        Raises:
          InputError: the object is not a vocabulary.
        """
        fields = schema.parse(_VocabJson, values, "vocabulary")
        return cls(tuple(fields.symbols), fields.unit, fields.unk, fields.boundary)

    def unknown_message(self, counts: Counter[str]) -> str:
        """The message about characters that the vocabulary lacks, from how often each occurs."""
        named = [f"{self._name(character)} ({count}x)" for character, count in counts.most_common()]
        remedy = "pass --unknown=unk" if self.unk else "train with config.data.unk=True"
        return f"not in the vocabulary: {listed(named)}; remove them, or {remedy}"

    @functools.cached_property
    def _ids(self) -> Int[np.ndarray, " points"]:
        """The id of every code point, or -1."""
        ids = np.full(_CODE_POINTS, -1, np.int32)
        ids[[ord(character) for character in self.characters]] = np.arange(len(self.characters))
        return ids

    def _name(self, character: str) -> str:
        if self.unit == "byte":
            return f"byte 0x{ord(character):02X}"
        return f"U+{ord(character):04X} {character!r}"


class _VocabJson(NamedTuple):
    """The JSON of a `Vocab`."""

    symbols: str
    unit: str
    unk: bool
    boundary: bool = False
