"""Decodes, normalizes and splits the files of a text, for training and scoring alike."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from charjax.data.reading.decoding import (
    BOM,
    CONFIG_PREFIX,
    decode,
    lower,
    split_at,
    split_blocks,
    unix_newlines,
)
from charjax.data.reading.documents import DocumentSplitter, Piece
from charjax.data.reading.rules import ReadingRules
from charjax.data.reading.units import bytes_to_text, text_of_unit
from charjax.data.sources.raw_text import RawText
from charjax.data.sources.records import has_records
from charjax.errors import InputError
from charjax.runtime.display import counted, listed
from charjax.runtime.paths import without_folders

_logger = logging.getLogger(__name__)


@dataclass
class Findings:
    """What readers found in the files of a text, to be said once.

    Attributes:
      notices: warnings to the user that came with the files.
      with_bom: files whose byte order mark was dropped.
      with_records: files of JSON lines or Parquet that were read as they are.
      without_newlines: files of lines whose line ends are carriage returns.
      num_copies: files with the text of another.
      num_empty: empty documents, which were left out.
    """

    notices: list[str] = field(default_factory=list)
    with_bom: list[str] = field(default_factory=list)
    with_records: list[str] = field(default_factory=list)
    without_newlines: list[str] = field(default_factory=list)
    num_copies: int = 0
    num_empty: int = 0

    def add(self, other: Findings) -> None:
        """Adds what was found in other files of the text."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def all_notices(self) -> tuple[str, ...]:
        """Warnings to the user about the text, to be kept with it."""
        if not self.with_bom:
            return tuple(self.notices)
        return (*self.notices, f"dropped the byte order mark of {listed(self.with_bom, most=1)}")

    def log(self, prefix: str) -> None:
        """Logs what is in no notice; `prefix` is before the names of options."""
        if self.with_records:
            _logger.warning(
                f"NOTICE: {listed(self.with_records, most=1)}: read as it is, with all that "
                "is around the texts; only `charjax pack --field=NAME` reads the texts alone"
            )
        if self.without_newlines:
            _logger.warning(
                f"NOTICE: {listed(self.without_newlines, most=1)}: carriage returns and no "
                f"newlines, so that a file is one document; set {prefix}newlines=unix"
            )
        if self.num_copies:
            files = "1 file has" if self.num_copies == 1 else f"{self.num_copies} files have"
            _logger.info("%s the text of another", files)
        if self.num_empty:
            _logger.info("left out %s", counted(self.num_empty, "empty document"))


class TextReader:
    """Decodes, normalizes and splits files into documents, piece by piece, in constant memory.

    Each file is decoded, its line ends are normalized, it is cut at the markers and converted to
    lower case, in this order; then it is split into documents. With `documents=none`, several
    files are joined by newlines to one document.

    Attributes:
      documents: splits the normalized text.
    """

    def __init__(
        self,
        rules: ReadingRules,
        *,
        are_markers_required: bool = True,
        prefix: str = CONFIG_PREFIX,
        files_before: bool = False,
    ) -> None:
        """Reads nothing.

        Args:
          rules: how to read files.
          are_markers_required: whether a file without the markers is an error; otherwise it is
            read from its beginning or to its end, which is logged.
          prefix: before the names of options in messages, `CONFIG_PREFIX` or `FLAG_PREFIX`.
          files_before: whether others have read files that come before these.
        """
        self._rules, self._prefix = rules, prefix
        self._are_markers_required = are_markers_required
        self.documents = DocumentSplitter(
            rules.documents, rules.unit, prefix, texts_before=files_before
        )
        self._found = Findings()
        self._hashes: list[int] = []  # of the files' normalized texts

    @property
    def rules(self) -> ReadingRules:
        """How files are read, with the values that were detected in the first one."""
        return replace(self._rules, documents=self.documents.rules)

    def pieces(self, files: Iterable[RawText], *, continues: bool = False) -> Iterator[Piece]:
        """The pieces of the files' documents; with `documents=none` no document starts.

        Args:
          files: the undecoded files.
          continues: whether the first file is the rest of one that was read before.

        Raises:
          InputError: a file cannot be decoded or parsed, or does not have a marker.
        """
        for file in files:
            self._found.notices += file.notices
            self._found.with_records += [file.origin] * has_records(file.origin)
            chunks = self._normalized(file)
            yield from self.documents.split(file.origin, chunks, continues=continues)
            continues = False

    def finish(self) -> tuple[str, ...]:
        """Logs what was found; returns notices, warnings to the user about the text."""
        findings = self.findings()
        findings.log(self._prefix)
        return findings.all_notices()

    def findings(self) -> Findings:
        """What was found in the files."""
        return replace(
            self._found,
            without_newlines=self.documents.without_newlines,
            num_copies=len(self._hashes) - len(set(self._hashes)),
            num_empty=self.documents.num_empty if self._rules.documents.boundary else 0,
        )

    def _normalized(self, file: RawText) -> Iterator[str]:
        """The characters of a file, normalized, in chunks."""
        rules = self._rules
        chunks: Iterator[str]
        if rules.unit == "byte":
            chunks = map(bytes_to_text, split_blocks(file.blocks))
        else:
            chunks = decode(file, rules.encoding, self._prefix)
            chunks = chunks if file.offset else self._without_bom(file.origin, chunks)
        if rules.newlines == "unix":
            chunks = unix_newlines(chunks)
        for name in ("start", "end"):
            if getattr(rules, name):
                chunks = self._cut(chunks, name, file.origin)
        if rules.lowercase:
            chunks = lower(chunks, rules.unit)
        return self._hashed(chunks)

    def _without_bom(self, origin: str, chunks: Iterator[str]) -> Iterator[str]:
        first = next(filter(None, chunks), "")
        if first.startswith(BOM):
            self._found.with_bom.append(without_folders(origin))
        yield first.removeprefix(BOM)
        yield from chunks

    def _hashed(self, chunks: Iterator[str]) -> Iterator[str]:
        digest = 0
        for chunk in filter(None, chunks):
            digest = hash((digest, chunk))
            yield chunk
        self._hashes.append(digest)

    def _cut(self, chunks: Iterator[str], field: str, origin: str) -> Iterator[str]:
        """The text from the marker `data.start` on, or up to the marker `data.end`."""
        marker: str = getattr(self._rules, field)
        is_found, left_out = False, []
        for part, is_after in split_at(chunks, text_of_unit(marker, self._rules.unit)):
            is_found = is_found or is_after
            if is_after == (field == "start"):
                yield part
            elif not is_found:
                left_out.append(part)
        if is_found:
            return
        option = f"{self._prefix}{field}={marker!r}"
        if self._are_markers_required:
            raise InputError(
                f"{option}: not in {origin}; copy the marker from the text, or leave it empty"
            )
        _logger.info("%s is not in %s, which is not cut there", option, origin)
        yield from left_out
