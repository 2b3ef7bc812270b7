"""Rows of CSV: their columns, and the character between these."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from charjax.errors import InputError
from charjax.runtime.display import counted

SNIFFED_CHARS = 1 << 16  # of a text, in which the delimiter is detected
_SNIFFED_ROWS = 100
_DELIMITERS = ",\t;|"  # candidates, the likeliest first
_MAX_FIELD = 2**31 - 1  # characters; Python's own limit for a field is 131,072

_logger = logging.getLogger(__name__)


def read_rows(
    chunks: Iterator[str],
    origin: str,
    columns: tuple[int | str, ...],
    delimiter: str,
    *,
    has_names: bool,
    unit: str,
    prefix: str,
) -> Iterator[str]:
    """The wanted columns of each row, joined by a space; of a blank line, "".

    Args:
      chunks: the characters of the text.
      origin: where it comes from, for messages.
      columns: numbers or names of columns; empty for all.
      delimiter: the character between columns; "" if there are only blank lines.
      has_names: whether the first row has the names of the columns.
      unit: what a character of the text is, see `charjax.data.vocab.Vocab`.
      prefix: before the names of options in messages.

    Raises:
      InputError: there is no such column, or the text is not valid CSV.
    """
    reader = _reader(_physical_lines(chunks), delimiter or ",")
    try:
        header: list[str] | None = next(filter(None, reader), None) if has_names else []
        if header is None:  # there are only blank lines
            return
        if unit == "byte":  # the names in the config are not bytes
            header = [name.encode("latin-1").decode("utf-8", "replace") for name in header]
        numbers = [_number(column, header, origin, prefix) for column in columns]
        for row in reader:
            wanted = numbers or range(len(row))
            if row and not all(0 <= column < len(row) for column in wanted):
                given = ",".join(map(str, columns))
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


def detect_delimiter(origin: str, text: str, prefix: str) -> str:
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


def _number(column: int | str, header: list[str], origin: str, prefix: str) -> int:
    """The number of a column that is given by its number or its name."""
    if isinstance(column, int):
        return column
    if column not in header:
        raise InputError(
            f"{prefix}columns: {origin} has no column {column!r}; its first row has "
            f"{', '.join(header)}; name one of these, or the character between columns in "
            f"{prefix}csv_delimiter"
        )
    return header.index(column)


def _reader(lines: Iterable[str], delimiter: str) -> Any:
    csv.field_size_limit(_MAX_FIELD)
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _num_columns(text: str, delimiter: str) -> int:
    """The number of columns of the first rows; 0 if rows have different numbers."""
    sample = io.StringIO(text[:SNIFFED_CHARS], newline="")
    reader, rows = _reader(sample, delimiter), []
    with contextlib.suppress(csv.Error):  # such as for the last row, cut off within quotes
        for row in itertools.islice(reader, _SNIFFED_ROWS):
            rows.append(row)
    if len(text) > SNIFFED_CHARS and 1 < len(rows) < _SNIFFED_ROWS:
        rows = rows[:-1]  # the last one may be cut off
    counts = {len(row) for row in rows if row}
    return counts.pop() if len(counts) == 1 else 0


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
