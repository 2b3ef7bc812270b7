"""Splits a text into documents: lines, files, CSV rows, or the parts between delimiters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from charjax.data.reading.csv_rows import SNIFFED_CHARS, detect_delimiter, read_rows
from charjax.data.reading.units import text_of_unit
from charjax.errors import InputError
from charjax.runtime.terminal import escape_hint

_MAX_REST = 1 << 20  # characters of an unfinished document that wait for its end
_ROWS_PER_PIECE = 4096


@dataclass(frozen=True, kw_only=True)
class DocumentRules:
    """How a text is split into documents; the fields are those of `charjax.config.DataConfig`.

    Attributes:
      mode: "none" (one document), "lines", "files", "rows" or "delimiter".
      delimiter: with "delimiter", the text between two documents.
      boundary: whether a boundary token separates documents; if so, lines lose their line ends.
      columns: with "rows", numbers or names of columns; empty for all.
      header: with "rows", whether the first row of a file has the names of its columns.
      csv_delimiter: with "rows", the character between columns; "" to detect it.
    """

    mode: str
    delimiter: str
    boundary: bool
    columns: tuple[int | str, ...]
    header: bool
    csv_delimiter: str


def missing_delimiter(delimiter: str, prefix: str, where: str) -> str:
    """The message about a delimiter of documents that is in none of the texts."""
    remedy = escape_hint(delimiter) or (
        f"copy the delimiter from the text, or set {prefix}documents=files if a file is a document"
    )
    return f"{prefix}delimiter={delimiter!r}: not in {where}; {remedy}"


class Piece(NamedTuple):
    """A part of a text, with the documents that start in it.

    Attributes:
      text: its characters.
      starts: positions in `text` where documents start, ascending.
    """

    text: str
    starts: Sequence[int]


class DocumentSplitter:
    """Splits texts into documents, without the empty ones, piece by piece.

    With `documents=none` no document starts: all texts are one, joined by newlines.

    Attributes:
      rules: what a document is; the `csv_delimiter` is detected in the first text that has rows.
      num_empty: empty documents, which were left out.
      has_delimiter: with "delimiter", whether one was found.
      without_newlines: with "lines", the origins of texts whose line ends are carriage returns.
    """

    def __init__(self, rules: DocumentRules, unit: str, prefix: str, *, texts_before: bool) -> None:
        """Reads no text.

        Args:
          rules: what a document is.
          unit: what a character of the texts is, see `charjax.data.vocab.Vocab`.
          prefix: before the names of options in messages, see `charjax.data.reading.decoding`.
          texts_before: whether others have split texts that come before these.
        """
        self.rules, self.num_empty = rules, 0
        self._unit, self._prefix, self._texts_before = unit, prefix, texts_before
        self.has_delimiter = False
        self.without_newlines: list[str] = []
        self._origins: list[str] = []  # of the first texts, for a message

    def split(
        self, origin: str, chunks: Iterator[str], *, continues: bool = False
    ) -> Iterator[Piece]:
        """The pieces of a text.

        Args:
          origin: where the text comes from, for messages.
          chunks: its characters.
          continues: whether it goes on where the text before ended, perhaps in a document.

        Raises:
          InputError: there is no such column, or the text is not valid CSV.
        """
        mode = self.rules.mode
        if mode == "none":
            if self._texts_before and not continues:
                yield Piece("\n", ())
            yield from (Piece(chunk, ()) for chunk in chunks)
        elif mode == "files":
            yield from self._file(chunks, continues=continues)
        elif mode == "rows":
            yield from self._rows(origin, chunks)
        else:
            yield from self._delimited(origin, chunks, continues=continues)
        self._texts_before = True

    def check_delimiter(self) -> None:
        """Raises InputError if documents end at a delimiter that is in none of the texts."""
        if self.rules.mode == "delimiter" and not self.has_delimiter:
            where = ", ".join(self._origins)
            raise InputError(missing_delimiter(self.rules.delimiter, self._prefix, where))

    def _file(self, chunks: Iterator[str], *, continues: bool) -> Iterator[Piece]:
        for chunk in filter(None, chunks):
            yield Piece(chunk, () if continues else (0,))
            continues = True
        self.num_empty += not continues

    def _delimited(self, origin: str, chunks: Iterator[str], *, continues: bool) -> Iterator[Piece]:
        """The documents between delimiters; the delimiter of lines is a newline."""
        is_lines, is_new = self.rules.mode == "lines", not continues
        continues = continues and not is_lines  # a part of a file ends where a line does
        delimiter = "\n" if is_lines else text_of_unit(self.rules.delimiter, self._unit)
        if len(self._origins) < 3:
            self._origins.append(origin)
        rest, is_found, has_return = "", False, False
        for chunk in chunks:
            has_return = has_return or "\r" in chunk
            *parts, rest = (rest + chunk).split(delimiter)  # splitlines() would split at others too
            if parts:
                is_found = True
                yield self._piece([self._document(part, delimiter) for part in parts], continues)
                continues = False
            if len(rest) > _MAX_REST:  # but for what may be a part of a delimiter or a line end
                cut = len(rest) - len(delimiter)
                yield self._piece([rest[:cut]], continues)
                rest, continues = rest[cut:], True
        if rest or not is_lines:
            yield self._piece([self._document(rest, "")], continues)
        if not is_lines:
            self.has_delimiter = self.has_delimiter or is_found
        elif is_new and has_return and not is_found:
            self.without_newlines.append(origin)

    def _document(self, part: str, delimiter: str) -> str:
        """The document of a part: with a boundary a line loses its line end, else it keeps it."""
        if self.rules.mode != "lines":
            return part
        return part.removesuffix("\r") if self.rules.boundary else part + delimiter

    def _rows(self, origin: str, chunks: Iterator[str]) -> Iterator[Piece]:
        """The wanted columns of each CSV row, joined by a space."""
        if not self.rules.csv_delimiter:
            head = ""
            while len(head) <= SNIFFED_CHARS and (chunk := next(chunks, None)) is not None:
                head += chunk
            if head.strip():
                detected = detect_delimiter(origin, head, self._prefix)
                self.rules = replace(self.rules, csv_delimiter=detected)
            chunks = itertools.chain([head], chunks)
        columns = self.rules.columns
        rows = read_rows(
            chunks,
            origin,
            columns,
            self.rules.csv_delimiter,
            has_names=self.rules.header or any(isinstance(column, str) for column in columns),
            unit=self._unit,
            prefix=self._prefix,
        )
        while batch := list(itertools.islice(rows, _ROWS_PER_PIECE)):
            yield self._piece(batch, False)

    def _piece(self, documents: list[str], continues: bool) -> Piece:
        """The piece of several documents, of which the first may be a continuation."""
        head = documents[0] if continues else ""
        kept = [document for document in documents[int(continues) :] if document]
        self.num_empty += len(documents) - int(continues) - len(kept)
        starts = itertools.accumulate(map(len, kept[:-1]), initial=len(head))
        return Piece(head + "".join(kept), list(starts) if kept else ())
