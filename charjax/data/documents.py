"""Splits a text into documents: lines, files, CSV rows, or the parts between delimiters."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from charjax.errors import InputError

_SNIFFED_CHARS = 1 << 16  # of the first file, in which the delimiter is detected
_SNIFFED_ROWS = 100
_DELIMITERS = ",\t;|"  # candidates, the likeliest first
_MAX_FIELD = 2**31 - 1  # characters; Python's own limit for a field is 131,072

CONFIG_PREFIX = "config.data."  # of the names of options in messages about a config

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


def split_documents(
    texts: Sequence[tuple[str, str]], rules: DocumentRules, options: str = CONFIG_PREFIX
) -> tuple[list[str], DocumentRules]:
    """Splits texts into documents, without the empty ones.

    Args:
      texts: (origin, text) of each file.
      rules: what a document is.
      options: prefix of the names of options in messages: "config.data." or "--".

    Returns:
      The documents; the rules, with the `csv_delimiter` that was detected.

    Raises:
      InputError: there is no such delimiter or column, or a text is not valid CSV.
    """
    if rules.mode == "none":
        documents = ["\n".join(text for _, text in texts)]
    elif rules.mode == "files":
        documents = [text for _, text in texts]
    elif rules.mode == "lines":
        documents = [
            line for origin, text in texts for line in _lines(text, origin, rules, options)
        ]
    elif rules.mode == "delimiter":
        documents = _delimited(texts, rules.delimiter, options)
    else:
        if texts and not rules.csv_delimiter:
            rules = replace(rules, csv_delimiter=_detect_delimiter(*texts[0], options))
        documents = [row for origin, text in texts for row in _rows(text, origin, rules, options)]
    kept = [document for document in documents if document]
    if len(kept) < len(documents) and rules.boundary:
        _logger.info("left out %s empty documents", f"{len(documents) - len(kept):,}")
    return kept, rules


def _lines(text: str, origin: str, rules: DocumentRules, options: str) -> Iterator[str]:
    if "\n" not in text and "\r" in text:
        _logger.warning(
            f"NOTICE: {origin} has carriage returns and no newlines, so it is one document; "
            f"set {options}newlines=unix"
        )
    # splitlines() would also break at other characters.
    for line in io.StringIO(text, newline="\n"):
        yield line.removesuffix("\n").removesuffix("\r") if rules.boundary else line


def _delimited(texts: Sequence[tuple[str, str]], delimiter: str, options: str) -> list[str]:
    parts = [text.split(delimiter) for _, text in texts]
    if not any(len(part) > 1 for part in parts):
        hint = ""
        if "\\n" in delimiter:
            hint = "; a backslash is not an escape here: write $'\\n' in the shell"
        raise InputError(
            f"{options}delimiter={delimiter!r}: not in {', '.join(o for o, _ in texts[:3])}; "
            f"copy the delimiter from the text{hint}"
        )
    return list(itertools.chain.from_iterable(parts))


def _rows(text: str, origin: str, rules: DocumentRules, options: str) -> Iterator[str]:
    """The wanted columns of each CSV row, joined by a space."""
    reader = _reader(text, rules.csv_delimiter)
    try:
        header: list[str] = next(reader, []) if rules.has_names else []
        columns = tuple(
            _column(column, header, f"{options}columns: {origin}") for column in rules.columns
        )
        for row in reader:
            wanted = columns or range(len(row))
            if row and not all(0 <= column < len(row) for column in wanted):
                raise InputError(
                    f"{options}columns={rules.columns}: line {reader.line_num} of {origin} has "
                    f"{len(row)} columns, numbered from 0; name columns that every row has, or the "
                    f"character between columns in {options}csv_delimiter"
                )
            yield " ".join(row[column] for column in wanted) if row else ""
    except csv.Error as error:
        raise InputError(
            f"{origin}: line {reader.line_num} is not valid CSV ({error}); correct the file, "
            f"or set {options}documents=lines"
        ) from error


def _column(column: int | str, header: list[str], where: str) -> int:
    """The number of a column that is given by its number or its name."""
    if isinstance(column, int):
        return column
    if column not in header:
        raise InputError(f"{where} has no column {column!r}; its first row has {', '.join(header)}")
    return header.index(column)


def _reader(text: str, delimiter: str) -> Any:
    csv.field_size_limit(_MAX_FIELD)
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)


def _detect_delimiter(origin: str, text: str, options: str) -> str:
    """The likeliest character that gives the first rows the same number of columns, over 1."""
    candidates = _DELIMITERS
    if origin.lower().endswith((".tsv", ".tab")):
        candidates = "\t" + candidates.replace("\t", "")
    counts = {delimiter: _num_columns(text, delimiter) for delimiter in candidates}
    detected = next((d for d in candidates if counts[d] > 1), ",")
    _logger.info(
        f"{origin}: columns are separated by {detected!r}, {max(counts[detected], 1)} in a row "
        f"({options}csv_delimiter)"
    )
    return detected


def _num_columns(text: str, delimiter: str) -> int:
    """The number of columns of the first rows; 0 if rows have different numbers."""
    reader, rows = _reader(text[:_SNIFFED_CHARS], delimiter), []
    with contextlib.suppress(csv.Error):  # such as for the last row, cut off within quotes
        for row in itertools.islice(reader, _SNIFFED_ROWS):
            rows.append(row)
    if len(text) > _SNIFFED_CHARS and 1 < len(rows) < _SNIFFED_ROWS:
        rows = rows[:-1]  # the last one may be cut off
    counts = {len(row) for row in rows if row}
    return counts.pop() if len(counts) == 1 else 0
