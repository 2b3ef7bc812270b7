"""The plan of a packed text: which parts of which files make up each shard."""

from __future__ import annotations

import codecs
import itertools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from charjax.data.reading.decoding import FLAG_PREFIX
from charjax.data.reading.reader import TextReader
from charjax.data.reading.rules import ReadingRules
from charjax.data.sources import records, remote
from charjax.data.sources.file_search import TextFiles, check_no_pipe
from charjax.data.sources.files import (
    is_compressed,
    open_binary,
    read_range,
    text_paths,
    texts_in_file,
)
from charjax.data.sources.raw_text import BYTE_ORDER_MARKS, RawText
from charjax.data.sources.read_errors import reading_errors
from charjax.errors import InputError
from charjax.runtime.paths import is_address

SHARD_BYTES = 1 << 26  # of the input of a shard, about
_OPTION = "PATH"  # of the command, in messages
# Encodings in which the byte 0x0A is a newline and nothing else.
_CUTTABLE = ("utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1252")


class Segment(NamedTuple):
    """A part of an input file, or all of it.

    Attributes:
      file: the number of the file.
      begin: its first byte; of a Parquet file, its first row group.
      end: the byte, or row group, after its last one; 0: the whole file.
      size: its size in bytes, before decompression.
    """

    file: int
    begin: int
    end: int
    size: int


class Plan(NamedTuple):
    """What is packed, and in which shards; the same in every process and after a kill.

    Attributes:
      reading: how the files are read.
      field: the field of JSON lines or Parquet that has the text, or "".
      inputs: path, size and mtime_ns of each file; of one at an address, its version instead of
        mtime_ns.
      shards: the parts of the files in each shard.
    """

    reading: ReadingRules
    field: str
    inputs: tuple[dict[str, Any], ...]
    shards: tuple[tuple[Segment, ...], ...]

    def texts(self, segment: Segment) -> Iterator[RawText]:
        """The undecoded texts of a part of a file.

        Raises:
          InputError: the file is missing or damaged.
          HostError: it cannot be read.
        """
        path = self.inputs[segment.file]["path"]
        if self._is_parquet(segment):
            return records.parquet(path, self.field, segment.begin, segment.end)
        if segment.end:
            files = iter([read_range(path, _OPTION, segment.begin, segment.end)])
        else:
            files = texts_in_file(path, _OPTION)
        if not self.field:
            return files
        return (text for file in files for text in records.json_lines(file, self.field))

    def has_text_before(self, shard: int) -> bool:
        """Whether a shard before this one has a text, as parts of JSON lines may not.

        The errors are those of `texts`.
        """
        before = itertools.chain(*self.shards[:shard])
        return any(self._is_parquet(part) or any(True for _ in self.texts(part)) for part in before)

    def _is_parquet(self, segment: Segment) -> bool:
        return bool(self.field) and records.is_parquet(self.inputs[segment.file]["path"])

    def check_unchanged(self, shard: int) -> None:
        """Refuses a shard with a part of a file that has changed since the plan was made.

        Raises:
          InputError: such a file has changed, so that its parts are of different texts.
          HostError: it cannot be read.
        """
        for number in {segment.file for segment in self.shards[shard] if segment.end}:
            path = self.inputs[number]["path"]
            if _describe(path) != self.inputs[number]:
                raise InputError(
                    f"{path}: has changed while it was packed; delete the store and pack it again"
                )


def make_plan(files: TextFiles, rules: ReadingRules, field: str) -> Plan:
    """Divides files among shards of about `SHARD_BYTES` of input.

    Args:
      files: from `find_files`.
      rules: how they are read.
      field: the field of JSON lines or Parquet that has the text, or "".

    Raises:
      InputError: a file is missing or a pipe, or a field is given for a file without fields, or
        none for one with them, or a field and an encoding.
      HostError: a file cannot be read.
    """
    inputs: list[dict[str, Any]] = []
    shards: list[tuple[Segment, ...]] = []
    shard: list[Segment] = []
    shard_bytes = 0
    may_be_binary = rules.is_utf8 and not field
    if field and rules.unit == "codepoint" and not rules.is_utf8:
        raise InputError(
            f"{FLAG_PREFIX}encoding={rules.encoding}: has no effect with --field: JSON lines and "
            "Parquet are UTF-8; leave it out"
        )
    check_no_pipe(files, _OPTION)
    for path in text_paths(files, _OPTION, are_utf8=may_be_binary):
        _check_field(path, field)
        inputs.append(_describe(path))
        for segment in _segments(len(inputs) - 1, inputs[-1], rules, field):
            _append(shard, segment)
            shard_bytes += segment.size
            if shard_bytes >= SHARD_BYTES:
                shards.append(tuple(shard))
                shard, shard_bytes = [], 0
    if shard or not shards:
        shards.append(tuple(shard))
    plan = Plan(rules, field, tuple(inputs), tuple(shards))
    if rules.documents.mode == "rows" and not rules.documents.csv_delimiter:
        reader = TextReader(rules, prefix=FLAG_PREFIX)
        texts = (text for part in itertools.chain(*shards) for text in plan.texts(part))
        # The first table with rows decides the delimiter.
        any(reader.rules.documents.csv_delimiter for _ in reader.pieces(texts))
        plan = plan._replace(reading=reader.rules)
    return plan


def _append(shard: list[Segment], segment: Segment) -> None:
    """Appends a part of a file to a shard.

    It is joined with the part before it if it follows that in the file, as row groups of Parquet
    do, so that the file is opened once for all of them.
    """
    if shard and (shard[-1].file, shard[-1].end) == (segment.file, segment.begin):
        before = shard.pop()
        segment = segment._replace(begin=before.begin, size=before.size + segment.size)
    shard.append(segment)


def _describe(path: str) -> dict[str, Any]:
    """An input of a plan; see `Plan.inputs`."""
    if is_address(path):
        return remote.describe(path, _OPTION)
    with reading_errors(path, _OPTION):
        stat = os.stat(path)
    return {"path": path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _check_field(path: str, field: str) -> None:
    if records.has_records(path) and not field:
        raise InputError(f"{path}: has records; name the field with the text by --field")
    if field and not records.has_records(path):
        raise InputError(
            f"--field={field}: {path} is neither JSON lines (.jsonl, .ndjson) nor Parquet "
            "(.parquet); leave the flag out, or correct the file's name"
        )


def _segments(
    number: int, entry: dict[str, Any], rules: ReadingRules, field: str
) -> Iterator[Segment]:
    """The parts of a file, which can be read independently of each other."""
    path, size = entry["path"], entry["size"]
    if field and records.is_parquet(path):
        groups = records.row_groups(path)
        for group in groups:
            yield Segment(number, group, group + 1, size // len(groups))
    elif size > SHARD_BYTES and _is_cuttable(path, rules, field):
        begin = 0
        with open_binary(path, _OPTION, seekable=True) as file:
            while begin < size:
                end = _line_end(file, begin + SHARD_BYTES, size)
                yield Segment(number, begin, end, end - begin)
                begin = end
    else:
        yield Segment(number, 0, 0, size)


def _is_cuttable(path: str, rules: ReadingRules, field: str) -> bool:
    """Whether a file that is cut after newlines reads as if it were whole."""
    if is_compressed(path) or (is_address(path) and not remote.has_ranges(path, _OPTION)):
        return False
    if field:
        return True
    if rules.start or rules.end or rules.documents.mode == "rows":
        return False
    if rules.documents.mode == "delimiter" and "\n" in rules.documents.delimiter:
        return False
    if rules.unit == "byte":
        return True
    with open_binary(path, _OPTION, seekable=True) as file:
        if file.read(4).startswith(tuple(mark for mark, _ in BYTE_ORDER_MARKS)):
            return False
    try:
        return codecs.lookup(rules.encoding).name in _CUTTABLE
    except LookupError:
        return False  # reading the file will say so


def _line_end(file: Any, position: int, size: int) -> int:
    """The position after the first newline at or after a position, or the end of the file."""
    file.seek(position)
    for block in iter(lambda: file.read(1 << 16), b""):
        newline: int = block.find(b"\n")
        if newline >= 0:
            return position + newline + 1
        position += len(block)
    return size
