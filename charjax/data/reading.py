"""Decodes and normalizes text by one set of rules, for training, scoring and prompts alike."""

from __future__ import annotations

import dataclasses
import logging
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from charjax.conditions import check_reading
from charjax.config import DataConfig
from charjax.data.decoding import (
    BOM,
    CONFIG_PREFIX,
    RawText,
    decode,
    is_utf8,
    lower,
    split_at,
    split_blocks,
    unix_newlines,
)
from charjax.data.documents import DocumentRules, DocumentSplitter, Piece
from charjax.data.vocab import Vocab, bytes_to_text, check_surrogates, text_of_unit
from charjax.errors import InputError
from charjax.runtime.display import counted, listed
from charjax.schema import parse

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReadingRules:
    """How a text is read; saved with a run, so that it reads other texts in the same way.

    The fields are those of `charjax.config.DataConfig`, except that detected values, such as the
    delimiter of a CSV file, are filled in.
    """

    unit: str
    encoding: str
    newlines: str
    lowercase: bool
    start: str
    end: str
    documents: DocumentRules

    @property
    def is_utf8(self) -> bool:
        """Whether texts are UTF-8, unless a byte order mark says otherwise."""
        return self.unit == "codepoint" and is_utf8(self.encoding)

    @classmethod
    def from_config(cls, config: DataConfig) -> ReadingRules:
        """The rules that a config asks for; runs of older versions saved no others."""
        documents = DocumentRules(
            mode=config.documents,
            delimiter=config.delimiter,
            boundary=config.boundary and config.documents != "none",
            columns=config.columns,
            header=config.header,
            csv_delimiter=config.csv_delimiter,
        )
        names = {field.name for field in dataclasses.fields(cls)} - {"documents"}
        return cls(**{name: getattr(config, name) for name in names}, documents=documents)

    def with_options(self, config: DataConfig, options: Mapping[str, Any]) -> ReadingRules:
        """The rules for a file that differs from the run's own text, by flags.

        Args:
          config: that of the run.
          options: fields of `DataConfig` and their values, such as {"encoding": "latin-1"}.
            Options of one `documents` mode, such as `columns`, select that mode.

        Raises:
          InputError: there is no such field, or a value does not fit.
        """
        mode = config.documents
        if "delimiter" in options:
            mode = "delimiter"
        elif options.keys() & {"columns", "header", "csv_delimiter"}:
            mode = "rows"
        values = {"documents": mode} | dict(options)
        if values["documents"] == config.documents:
            values = {"csv_delimiter": self.documents.csv_delimiter} | values
        else:  # the run's options of another mode do not apply
            config = replace(config, delimiter="", columns=(), header=False, csv_delimiter="")
        changed = parse(DataConfig, dataclasses.asdict(config) | values, "--")
        if "encoding" in options and changed.unit == "byte":
            raise InputError("--encoding: has no effect: a token of this model is a byte")
        check_reading(changed, options)
        if changed.unit != config.unit:
            raise InputError(f"--unit: a token of this model is a {config.unit}")
        rules = ReadingRules.from_config(changed)
        return replace(rules, documents=replace(rules.documents, boundary=self.documents.boundary))

    def to_json(self) -> dict[str, Any]:
        """The rules as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> ReadingRules:
        """The rules that `to_json` wrote.

        Raises:
          InputError: a field is unknown or missing, or has the wrong type.
        """
        rules: ReadingRules = parse(cls, values, "reading")
        return rules


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
        self._notices: list[str] = []
        self._files_with_bom: list[str] = []
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
            self._notices += file.notices
            chunks = self._normalized(file)
            yield from self.documents.split(file.origin, chunks, continues=continues)
            continues = False

    def finish(self) -> tuple[str, ...]:
        """Logs what was left out; returns notices, warnings to the user about the text."""
        notices = list(self._notices)
        if self._files_with_bom:
            notices.append(f"dropped the byte order mark of {listed(self._files_with_bom, most=1)}")
        if without_newlines := self.documents.without_newlines:
            _logger.warning(
                f"NOTICE: {listed(without_newlines, most=1)}: carriage returns and no newlines, so "
                f"that a file is one document; set {self._prefix}newlines=unix"
            )
        if copies := len(self._hashes) - len(set(self._hashes)):
            files = "1 file has" if copies == 1 else f"{copies} files have"
            _logger.info("%s the text of another", files)
        if self.documents.num_empty and self._rules.documents.boundary:
            _logger.info("left out %s", counted(self.documents.num_empty, "empty document"))
        return tuple(notices)

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
        for field in ("start", "end"):
            if getattr(rules, field):
                chunks = self._cut(chunks, field, file.origin)
        if rules.lowercase:
            chunks = lower(chunks, rules.unit)
        return self._hashed(chunks)

    def _without_bom(self, origin: str, chunks: Iterator[str]) -> Iterator[str]:
        first = next(filter(None, chunks), "")
        if first.startswith(BOM):
            self._files_with_bom.append(origin)
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


def prepare_prompt(text: str, rules: ReadingRules, vocab: Vocab) -> str:
    """Normalizes a prompt as the run's text: line ends, case, Unicode normal form.

    A byte order mark at its start is dropped, as in a text.

    Raises:
      InputError: a character is half of a surrogate pair.
    """
    check_surrogates(text)
    text = text.removeprefix(BOM)
    if rules.newlines == "unix":
        text = "".join(unix_newlines([text]))
    if rules.lowercase:
        text = text.encode().lower().decode() if rules.unit == "byte" else text.lower()
    return normalize_form(text, vocab)


def normalize_form(text: str, vocab: Vocab) -> str:
    """Converts a text to NFC or NFD if the vocabulary has more of its characters then.

    A text that the vocabulary covers, such as the run's own, is returned unchanged.
    """
    if text.isascii() or not _unknown(text, vocab):
        return text
    forms = [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]
    return min(forms, key=lambda form: len(_unknown(form, vocab)))  # the first of equals


def _unknown(text: str, vocab: Vocab) -> set[str]:
    """The distinct characters, or bytes, that are not in the vocabulary."""
    return set(text_of_unit(text, vocab.unit)).difference(vocab.characters)
