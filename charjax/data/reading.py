"""Decodes and normalizes text by one set of rules, for training, scoring and prompts alike."""

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
from charjax.data.documents import CONFIG_PREFIX, DocumentRules, split_documents
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
_GUESSED_BYTES = 1 << 16  # the start of a file, from which its encoding is guessed for a message
_MIN_UTF16_BYTES = 16  # a shorter text is never guessed to be UTF-16

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
        name = self.encoding.lower().replace("_", "-")
        return self.unit == "codepoint" and name in ("utf-8", "utf8")

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
        """The rules for a file that differs from the run's own text.

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
    """A text, decoded, normalized and split into documents.

    Attributes:
      text: its documents, one after another; one character a token, see `bytes_to_text`.
      document_starts: int64 positions in the text, ascending from 0.
      rules: how it was read, with the detected values.
      notices: warnings to the user about the text.
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
    options: str = CONFIG_PREFIX,
) -> PreparedText:
    """Decodes and normalizes files, and splits them into documents.

    Each file is decoded, its line ends are normalized, it is cut at the markers and converted to
    lower case, in this order; then all are split into documents. With `documents=none`, several
    files are joined by newlines to one document.

    Args:
      files: the undecoded files.
      rules: how to read them.
      are_markers_required: whether a file without the markers is an error; otherwise it is read
        from its beginning or to its end, which is logged.
      options: prefix of the names of options in messages: "config.data." or "--".

    Raises:
      InputError: a file cannot be decoded or parsed, or does not have a marker.
    """
    texts: list[tuple[str, str]] = []
    notices: list[str] = []
    files_with_bom: list[str] = []
    for file in files:
        notices += file.notices
        text = _decode(file, rules, options)
        if text.startswith(_BOM):
            files_with_bom.append(file.origin)
        find = partial(_find_marker, file.origin, rules, are_markers_required, options)
        texts.append((file.origin, _normalize(text, rules, find)))
    if files_with_bom:
        more = f" and {len(files_with_bom) - 1} more files" if len(files_with_bom) > 1 else ""
        notices.append(f"dropped the byte order mark of {files_with_bom[0]}{more}")
    copies = len(texts) - len({text for _, text in texts})
    if copies:
        _logger.info("%d file%s the text of another", copies, " has" if copies == 1 else "s have")
    documents, used = split_documents(texts, rules.documents, options)
    starts = np.cumsum([0] + [len(document) for document in documents[:-1]], dtype=np.int64)
    return PreparedText("".join(documents), starts, replace(rules, documents=used), tuple(notices))


def prepare_prompt(text: str, rules: ReadingRules, vocab: Vocab) -> str:
    """Normalizes a prompt as the run's text: line ends, case, Unicode normal form.

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
    """Converts a text to NFC or NFD if the vocabulary has more of its characters then.

    A text that the vocabulary covers, such as the run's own, is returned unchanged.
    """
    if text.isascii() or not _unknown(text, vocab):
        return text
    forms = [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]
    return min(forms, key=lambda form: len(_unknown(form, vocab)))  # the first of equals


def _unknown(text: str, vocab: Vocab) -> set[str]:
    """The distinct characters, or bytes, that are not in the vocabulary."""
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
    """The advice of the message about a file in another encoding; names the likeliest one."""
    for mark, suffix in ((b"\x1f\x8b", ".gz"), (b"\xfd7zXZ", ".xz"), (b"\x28\xb5\x2f\xfd", ".zst")):
        if data.startswith(mark):
            return f"it is compressed: rename it to end with {suffix}"
    if data.startswith(b"PK\x03\x04"):
        return "it is a zip archive: rename it to end with .zip, or unpack it"
    # The unit of a trained model cannot change.
    as_bytes = f", or {options}unit=byte" if options == CONFIG_PREFIX else ""
    if guess := _guess_encoding(data):
        return (
            f"it is likeliest {guess}: set {options}encoding={guess} and look at the result"
            + as_bytes
        )
    return f"set {options}encoding to the encoding of the file{as_bytes}"


def _guess_encoding(data: bytes) -> str:
    """The likeliest encoding of bytes that are not UTF-8; "" if none is likely."""
    from charset_normalizer import from_bytes

    if utf16 := _guess_utf16(data):
        return utf16
    best = from_bytes(data[:_GUESSED_BYTES]).best()
    return best.encoding.replace("_", "-") if best else ""


def _guess_utf16(data: bytes) -> str:
    """The UTF-16 of Latin text without byte order mark, recognised by its NULs; else ""."""
    sample = data[:_GUESSED_BYTES]
    even, odd = (sample[i::2].count(0) for i in (0, 1))
    if len(sample) < _MIN_UTF16_BYTES or min(even, odd) or max(even, odd) < len(sample) / 4:
        return ""
    return "utf-16-be" if even else "utf-16-le"


def _normalize(text: str, rules: ReadingRules, find: Callable[[str, str], int | None]) -> str:
    """Drops the byte order mark, normalizes line ends, cuts at the markers, lowers the case."""
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
    """The position of the marker of `data.start` or `data.end`; None if the text has none."""
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
    _logger.info("%s%s=%r is not in %s, which is not cut there", options, field, marker, origin)
    return None
