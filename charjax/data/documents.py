"""Splits a text into documents: lines, files, CSV rows, or the parts between delimiters."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from charjax.data.vocab import text_of_unit
from charjax.errors import InputError
from charjax.runtime.display import counted

_SNIFFED_CHARS = 1 << 16  # of the first file, in which the delimiter is detected
_SNIFFED_ROWS = 100
_DELIMITERS = ",\t;|"  # candidates, the likeliest first
_MAX_FIELD = 2**31 - 1  # characters; Python's own limit for a field is 131,072
_MAX_REST = 1 << 20  # characters of an unfinished document that wait for its end
_ROWS_PER_PIECE = 4096

# What messages put before the names of options, which come from a config or from flags.
CONFIG_PREFIX, FLAG_PREFIX = "config.data.", "--"

_logger = logging.getLogger(__name__)


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

    @property
    def has_names(self) -> bool:
        """Whether the first row of a file has the names of the columns."""
        return self.header or any(isinstance(column, str) for column in self.columns)


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
      has_delimiter: whether a delimiter of documents was found.
      without_newlines: with "lines", the origins of texts whose line ends are carriage returns.
    """

    def __init__(self, rules: DocumentRules, unit: str, prefix: str, *, texts_before: bool) -> None:
        """Reads no text.

        Args:
          rules: what a document is.
          unit: what a character of the texts is, see `charjax.data.vocab.Vocab`.
          prefix: before the names of options in messages, `CONFIG_PREFIX` or `FLAG_PREFIX`.
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
        elif mode == "lines":
            yield from self._lines(origin, chunks, is_new=not continues)
        elif mode == "delimiter":
            yield from self._delimited(origin, chunks, continues=continues)
        else:
            yield from self._rows(origin, chunks)
        self._texts_before = True

    def check_delimiter(self) -> None:
        """Raises InputError if documents end at a delimiter that is in none of the texts."""
        if self.rules.mode == "delimiter" and not self.has_delimiter:
            hint = ""
            if "\\n" in self.rules.delimiter:
                hint = "; a backslash is not an escape here: write $'\\n' in the shell"
            raise InputError(
                f"{self._prefix}delimiter={self.rules.delimiter!r}: not in "
                f"{', '.join(self._origins)}; copy the delimiter from the text{hint}"
            )

    def _file(self, chunks: Iterator[str], *, continues: bool) -> Iterator[Piece]:
        for chunk in filter(None, chunks):
            yield Piece(chunk, () if continues else (0,))
            continues = True
        self.num_empty += not continues

    def _lines(self, origin: str, chunks: Iterator[str], *, is_new: bool) -> Iterator[Piece]:
        # splitlines() would also break at other characters.
        rest, continues, has_newline, has_return = "", False, False, False
        for chunk in chunks:
            has_return = has_return or "\r" in chunk
            *lines, rest = (rest + chunk).split("\n")
            if lines:
                has_newline = True
                yield self._piece([self._line(f"{line}\n") for line in lines], continues)
                continues = False
            if len(rest) > _MAX_REST:  # but for its last character, perhaps a part of the line end
                yield self._piece([rest[:-1]], continues)
                rest, continues = rest[-1], True
        if rest:
            yield self._piece([self._line(rest)], continues)
        if has_return and not has_newline and is_new:
            self.without_newlines.append(origin)

    def _line(self, line: str) -> str:
        return line.removesuffix("\n").removesuffix("\r") if self.rules.boundary else line

    def _delimited(self, origin: str, chunks: Iterator[str], *, continues: bool) -> Iterator[Piece]:
        rest, delimiter = "", text_of_unit(self.rules.delimiter, self._unit)
        if len(self._origins) < 3:
            self._origins.append(origin)
        for chunk in chunks:
            *parts, rest = (rest + chunk).split(delimiter)
            if parts:
                self.has_delimiter = True
                yield self._piece(parts, continues)
                continues = False
            if len(rest) > _MAX_REST:  # but for what may be a part of a delimiter
                cut = len(rest) - len(delimiter) + 1
                yield self._piece([rest[:cut]], continues)
                rest, continues = rest[cut:], True
        yield self._piece([rest], continues)

    def _rows(self, origin: str, chunks: Iterator[str]) -> Iterator[Piece]:
        """The wanted columns of each CSV row, joined by a space."""
        if not self.rules.csv_delimiter:
            head = ""
            while len(head) <= _SNIFFED_CHARS and (chunk := next(chunks, None)) is not None:
                head += chunk
            if head.strip():
                detected = _detect_delimiter(origin, head, self._prefix)
                self.rules = replace(self.rules, csv_delimiter=detected)
            chunks = itertools.chain([head], chunks)
        rows = _rows(_physical_lines(chunks), origin, self.rules, self._unit, self._prefix)
        while batch := list(itertools.islice(rows, _ROWS_PER_PIECE)):
            yield self._piece(batch, False)

    def _piece(self, documents: list[str], continues: bool) -> Piece:
        """The piece of several documents, of which the first may be a continuation."""
        head = documents[0] if continues else ""
        kept = [document for document in documents[int(continues) :] if document]
        self.num_empty += len(documents) - int(continues) - len(kept)
        starts = itertools.accumulate(map(len, kept[:-1]), initial=len(head))
        return Piece(head + "".join(kept), list(starts) if kept else ())


def _physical_lines(chunks: Iterator[str]) -> Iterator[str]:
    """The lines of a text with their ends: LF, CR or CR LF."""
    parts: list[str] = []  # of the last line: the end of a chunk may part it, or CR from LF
    for chunk in chunks:
        parts.append(chunk)
        if "\n" in chunk or "\r" in chunk:
            *lines, rest = io.StringIO("".join(parts), newline="")
            yield from lines
            parts = [rest]
    yield from io.StringIO("".join(parts), newline="")


def _rows(
    lines: Iterator[str], origin: str, rules: DocumentRules, unit: str, prefix: str
) -> Iterator[str]:
    """The wanted columns of each CSV row, joined by a space."""
    reader = _reader(lines, rules.csv_delimiter or ",")
    try:
        header: list[str] | None = next(filter(None, reader), None) if rules.has_names else []
        if header is None:  # there are only blank lines
            return
        if unit == "byte":  # the names in the config are not bytes
            header = [name.encode("latin-1").decode("utf-8", "replace") for name in header]
        columns = tuple(
            _column(column, header, f"{prefix}columns: {origin}") for column in rules.columns
        )
        for row in reader:
            wanted = columns or range(len(row))
            if row and not all(0 <= column < len(row) for column in wanted):
                given = ",".join(map(str, rules.columns))
                raise InputError(
                    f"{prefix}columns={given}: line {reader.line_num} of {origin} has "
                    f"{counted(len(row), 'column')}, numbered from 0; name columns that every "
                    f"row has, or the character between columns in {prefix}csv_delimiter"
                )
            yield " ".join(row[column] for column in wanted) if row else ""
    except csv.Error as error:
        raise InputError(
            f"{origin}: line {reader.line_num} is not valid CSV ({error}); correct the file, "
            f"or set {prefix}documents=lines"
        ) from error


def _column(column: int | str, header: list[str], where: str) -> int:
    """The number of a column that is given by its number or its name."""
    if isinstance(column, int):
        return column
    if column not in header:
        raise InputError(f"{where} has no column {column!r}; its first row has {', '.join(header)}")
    return header.index(column)


def _reader(lines: Iterable[str], delimiter: str) -> Any:
    csv.field_size_limit(_MAX_FIELD)
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _detect_delimiter(origin: str, text: str, prefix: str) -> str:
    """The likeliest character that gives the first rows the same number of columns, over 1."""
    candidates = _DELIMITERS
    if origin.lower().endswith((".tsv", ".tab")):
        candidates = "\t" + candidates.replace("\t", "")
    counts = {delimiter: _num_columns(text, delimiter) for delimiter in candidates}
    detected = next((d for d in candidates if counts[d] > 1), ",")
    _logger.info(
        f"{origin}: columns are separated by {detected!r}, {max(counts[detected], 1)} in a row "
        f"({prefix}csv_delimiter)"
    )
    return detected


def _num_columns(text: str, delimiter: str) -> int:
    """The number of columns of the first rows; 0 if rows have different numbers."""
    sample = io.StringIO(text[:_SNIFFED_CHARS], newline="")
    reader, rows = _reader(sample, delimiter), []
    with contextlib.suppress(csv.Error):  # such as for the last row, cut off within quotes
        for row in itertools.islice(reader, _SNIFFED_ROWS):
            rows.append(row)
    if len(text) > _SNIFFED_CHARS and 1 < len(rows) < _SNIFFED_ROWS:
        rows = rows[:-1]  # the last one may be cut off
    counts = {len(row) for row in rows if row}
    return counts.pop() if len(counts) == 1 else 0
