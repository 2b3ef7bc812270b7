"""The texts in a field of JSON lines and of Parquet; each counts as a file of its own."""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from charjax.data.sources.files import open_binary
from charjax.data.sources.raw_text import RawText
from charjax.errors import HostError, InputError

_PARQUET = ".parquet"
# The name of a file with records; that of JSON lines may go on with the suffix of a compression.
_WITH_RECORDS = re.compile(r".*\.(?:parquet|(?:jsonl|ndjson)(?:\.\w+)?)", re.DOTALL | re.IGNORECASE)
_ROWS = 256  # of Parquet that are texts in memory at a time


def is_parquet(path: str) -> bool:
    """Whether a file is Parquet, by its suffix."""
    return path.lower().endswith(_PARQUET)


def has_records(path: str) -> bool:
    """Whether a file is JSON lines, perhaps compressed, or Parquet, by its suffixes."""
    return _WITH_RECORDS.fullmatch(path) is not None


def json_lines(file: RawText, field: str) -> Iterator[RawText]:
    """The texts of a field in the lines of a file.

    Raises:
      InputError: a line is not a JSON object, or has no text in that field.
    """
    for number, line in enumerate(_lines(file.blocks), 1):
        if not line.strip():
            continue
        where = f"{file.origin}: line {number}"
        if file.offset:
            where += f" after byte {file.offset}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON ({error}); correct the file") from error
        yield _text(record, field, where)


def parquet(path: str, field: str, begin: int, end: int) -> Iterator[RawText]:
    """The texts of a column in the row groups `begin` to `end` of a file.

    Raises:
      InputError: the file has no such column of texts, or is damaged.
      HostError: pyarrow is not installed, or the file cannot be read.
    """
    with _open_parquet(path) as file:
        if field not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise InputError(f"--field={field}: {path} has no such column; it has {names}")
        batches = file.iter_batches(_ROWS, row_groups=range(begin, end), columns=[field])
        # A field with a dot in its name selects the columns inside of others, too.
        columns = (batch.column(batch.schema.names.index(field)) for batch in batches)
        values = (value for column in columns for value in column.to_pylist())
        for number, value in enumerate(values, 1):
            where = f"{path}: row {number} from row group {begin} on"
            yield _text({field: value}, field, where)


def row_groups(path: str) -> list[int]:
    """The row groups of a Parquet file that have rows; the errors are those of `parquet`."""
    with _open_parquet(path) as file:
        metadata = file.metadata
        return [i for i in range(metadata.num_row_groups) if metadata.row_group(i).num_rows]


@contextlib.contextmanager
def _open_parquet(path: str) -> Iterator[Any]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise HostError(
            f"{path}: reading Parquet needs pyarrow; run: pip install 'charjax[data]'"
        ) from None
    with open_binary(path, "PATH", seekable=True) as file:
        # Of files whose pages have checksums, as Spark and parquet-java write them.
        yield parquet.ParquetFile(file, page_checksum_verification=True)


def _text(record: Any, field: str, where: str) -> RawText:
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise InputError(
            f"{where} has no text in the field {field!r}; choose another --field, or correct the "
            "file"
        )
    try:
        return RawText(where, (text.encode(),))
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: character {error.start} is half of a surrogate pair; correct the file"
        ) from error


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []  # of the last line, which the end of a block may part
    for number, block in enumerate(blocks):
        block = block.removeprefix(codecs.BOM_UTF8) if not number else block
        end, *lines = block.split(b"\n")
        parts.append(end)
        if lines:
            yield b"".join(parts)
            yield from lines[:-1]
            parts = lines[-1:]
    yield b"".join(parts)
