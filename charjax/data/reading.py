"""The one reading of a text: what training, `score`, prompts and samples see of it."""

from __future__ import annotations

import codecs
import dataclasses
import logging
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from charjax.config import DataConfig, check_reading
from charjax.data.documents import CONFIG, DocumentRules, split_documents
from charjax.data.named_corpora import RawText
from charjax.data.vocab import Vocab, bytes_to_text
from charjax.errors import InputError
from charjax.schema import build

_BOM = "\ufeff"
# UTF-32 before UTF-16, whose little-endian mark it starts with.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GUESSED_BYTES = 1 << 16  # from which the encoding of a file is guessed, for a message
_MIN_UTF16_BYTES = 16  # of a text without byte order mark

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReadingRules:
    """How a text is read; recorded with a run, so that it reads other texts in the same way.

    The fields are those of `charjax.config.DataConfig`. What a file's content decided, such as
    the delimiter of a CSV file, is filled in.
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
        """Whether texts are UTF-8, or have a byte order mark that says what they are."""
        name = self.encoding.lower().replace("_", "-")
        return self.unit == "codepoint" and name in ("utf-8", "utf8")

    @classmethod
    def from_config(cls, config: DataConfig) -> ReadingRules:
        """The rules that a config asks for, or that a run of an older version had."""
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
        """The rules for a file that differs from the run's own text.

        Args:
          config: of the run.
          options: fields of `DataConfig` and their values, such as {"encoding": "latin-1"}. One
            that only some value of `documents` reads implies that value.

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
        else:  # what the run's own documents are says nothing about others
            config = replace(config, delimiter="", columns=(), header=False, csv_delimiter="")
        changed = build(DataConfig, dataclasses.asdict(config) | values, "config.data")
        check_reading(changed, options)
        if changed.unit != config.unit:
            raise InputError(f"config.data.unit: a token of this model is a {config.unit}")
        rules = ReadingRules.from_config(changed)
        return replace(rules, documents=replace(rules.documents, boundary=self.documents.boundary))

    def to_json(self) -> dict[str, Any]:
        """The rules as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> ReadingRules:
        """The rules that `to_json` wrote.

        Raises:
          InputError: a field is unknown or has the wrong type.
        """
        try:
            rules: ReadingRules = build(cls, values, "reading")
        except TypeError:  # a field is missing
            raise InputError("reading: not the reading rules of a run") from None
        return rules


class PreparedText(NamedTuple):
    """A text as it is read.

    Attributes:
      text: its documents, one after another; one character a token, see `bytes_to_text`.
      document_starts: int64 positions in the text, rising from 0.
      rules: by which it was read, with what was detected.
      notices: what the user must be told about it.
    """

    text: str
    document_starts: Int[np.ndarray, " documents"]
    rules: ReadingRules
    notices: tuple[str, ...]


def prepare_text(
    files: Iterable[RawText],
    rules: ReadingRules,
    *,
    are_markers_required: bool = True,
    options: str = CONFIG,
) -> PreparedText:
    """Decodes files, normalizes their line ends, cuts at the markers, splits into documents.

    Each file is decoded, its line ends are normalized, it is cut at the markers and converted
    to lower case, in this order, and then split into documents. With `documents=none`, several
    files are joined by newlines.

    Args:
      files: undecoded.
      rules: how to read them.
      are_markers_required: whether a file must have the markers; if not, one without them is
        read whole, which is logged.
      options: what the names of options begin with in messages: "config.data." or "--".

    Raises:
      InputError: a file cannot be decoded or parsed, or lacks a marker.
    """
    texts: list[tuple[str, str]] = []
    notices: list[str] = []
    marked: list[str] = []
    for file in files:
        notices += file.notices
        text = _decode(file, rules, options)
        if text.startswith(_BOM):
            marked.append(file.origin)
        find = partial(_find_marker, file.origin, rules, are_markers_required, options)
        texts.append((file.origin, _normalize(text, rules, find)))
    if marked:
        more = f" and {len(marked) - 1} more files" if len(marked) > 1 else ""
        notices.append(f"dropped the byte order mark of {marked[0]}{more}")
    twice = len(texts) - len({text for _, text in texts})
    if twice:
        _logger.info("%d file%s the text of another", twice, " has" if twice == 1 else "s have")
    documents, used = split_documents(texts, rules.documents, options)
    starts = np.cumsum([0] + [len(document) for document in documents[:-1]], dtype=np.int64)
    return PreparedText("".join(documents), starts, replace(rules, documents=used), tuple(notices))


def prepare_prompt(text: str, rules: ReadingRules, vocab: Vocab) -> str:
    """A prompt as the run's own text was prepared: its line ends, case and Unicode normal form.

    A byte order mark at its start is dropped, as in a text.
    """
    text = text.removeprefix(_BOM)
    if rules.newlines == "unix":
        text = _unix_newlines(text)
    if rules.lowercase and rules.unit == "byte":
        text = text.encode().lower().decode()
    elif rules.lowercase:
        text = text.lower()
    return normalize_form(text, vocab)


def normalize_form(text: str, vocab: Vocab) -> str:
    """A text in the Unicode normal form, NFC or NFD, of which the vocabulary knows more characters.

    One whose characters it knows all stays as it is, and so does every text of the run itself.
    """
    if text.isascii() or not _unknown(text, vocab):
        return text
    forms = [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]
    return min(forms, key=lambda form: len(_unknown(form, vocab)))  # the first of equals


def _unknown(text: str, vocab: Vocab) -> set[str]:
    """The distinct characters, or bytes, that the vocabulary lacks."""
    characters = set(bytes_to_text(text.encode()) if vocab.unit == "byte" else text)
    return characters.difference(vocab.characters)


def _decode(file: RawText, rules: ReadingRules, options: str) -> str:
    if rules.unit == "byte":
        return bytes_to_text(file.data)
    encoding = rules.encoding
    if rules.is_utf8:
        marks = (name for mark, name in _BYTE_ORDER_MARKS if file.data.startswith(mark))
        encoding = next(marks, encoding)
        if encoding != rules.encoding:
            _logger.info("%s: read as %s, by its byte order mark", file.origin, encoding)
    try:
        text = file.data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file.origin}: byte 0x{file.data[error.start]:02X} at offset {error.start} is not "
            f"valid {encoding}; {_encoding_remedy(file.data, options)}"
        ) from error
    except (LookupError, ValueError) as error:
        raise InputError(
            f"{file.origin}: cannot be decoded with {options}encoding={encoding!r}; "
            "name a text encoding that Python knows, such as utf-8"
        ) from error
    if "\0" in text and _guess_utf16(file.data):
        raise InputError(
            f"{file.origin}: is not {encoding}; {_encoding_remedy(file.data, options)}"
        )
    return text


def _encoding_remedy(data: bytes, options: str) -> str:
    """What to do about a file in another encoding: the likeliest, where it can be recognised."""
    for mark, suffix in ((b"\x1f\x8b", ".gz"), (b"\xfd7zXZ", ".xz"), (b"\x28\xb5\x2f\xfd", ".zst")):
        if data.startswith(mark):
            return f"it is compressed: rename it to end with {suffix}"
    if data.startswith(b"PK\x03\x04"):
        return "it is a zip archive: rename it to end with .zip, or unpack it"
    # The unit of a trained model stays as it is.
    as_bytes = f", or {options}unit=byte" if options == CONFIG else ""
    if guess := _guess_encoding(data):
        return (
            f"it is likeliest {guess}: set {options}encoding={guess} and look at the result"
            + as_bytes
        )
    return f"set {options}encoding to what the file has{as_bytes}"


def _guess_encoding(data: bytes) -> str:
    """The likeliest encoding of a text that is not UTF-8; "" if none is likely."""
    from charset_normalizer import from_bytes

    if utf16 := _guess_utf16(data):
        return utf16
    best = from_bytes(data[:_GUESSED_BYTES]).best()
    return best.encoding.replace("_", "-") if best else ""


def _guess_utf16(data: bytes) -> str:
    """Which UTF-16 without byte order mark the text is in, if it is Latin; else an empty text."""
    sample = data[:_GUESSED_BYTES]
    even, odd = (sample[i::2].count(0) for i in (0, 1))
    if len(sample) < _MIN_UTF16_BYTES or min(even, odd) or max(even, odd) < len(sample) / 4:
        return ""
    return "utf-16-be" if even else "utf-16-le"


def _normalize(text: str, rules: ReadingRules, find: Callable[[str, str], int | None]) -> str:
    """The text without byte order mark, with the rules' line ends, markers and case."""
    text = text.removeprefix(_BOM)
    if rules.newlines == "unix":
        text = _unix_newlines(text)
    text = text[find("start", text) :]
    text = text[: find("end", text)]
    return _lower(text, rules.unit) if rules.lowercase else text


def _unix_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lower(text: str, unit: str) -> str:
    if unit == "byte":  # ASCII letters only: the others take several bytes
        return text.encode("latin-1").lower().decode("latin-1")
    return text.lower()


def _find_marker(
    origin: str, rules: ReadingRules, is_required: bool, options: str, field: str, text: str
) -> int | None:
    """The position of the marker in `data.start` or `data.end`; None if there is no marker."""
    marker: str = getattr(rules, field)
    if not marker:
        return None
    position = text.find(bytes_to_text(marker.encode()) if rules.unit == "byte" else marker)
    if position >= 0:
        return position
    if is_required:
        raise InputError(
            f"{options}{field}={marker!r}: not in {origin}; copy the marker from the text, "
            "or leave it empty"
        )
    _logger.info("%s%s=%r is not in %s, which is read whole", options, field, marker, origin)
    return None
