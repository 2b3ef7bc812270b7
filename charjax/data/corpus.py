"""Corpus: the text of a run, read by name or path, decoded, normalized, split into documents."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from charjax.config import DataConfig
from charjax.data.named_corpora import (
    BUILT_IN,
    CorpusUnavailableError,
    RawText,
    check_name,
    read_named,
)
from charjax.data.vocab import bytes_to_text
from charjax.errors import HostError, InputError
from charjax.runtime.display import ProgressFn, no_progress

_BOM = "\ufeff"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text and its documents.

    Attributes:
      name: the name of the corpus, or the path it was read from.
      text: one character a token; with `data.unit=byte`, as `bytes_to_text` returns it.
      document_starts: int64 positions in the text, rising from 0.
      sha256: hexadecimal digest of the text's UTF-8, after all processing.
      notice: what the user must be told about the text, or "".
    """

    name: str
    text: str
    document_starts: Int[np.ndarray, " documents"]
    sha256: str
    notice: str


def load_corpus(config: DataConfig, *, progress: ProgressFn = no_progress) -> Corpus:
    """Reads the corpus that the config names and processes it as the config says.

    Each file is decoded, its line ends are normalized, it is cut at the markers, converted
    to lower case and split into documents, in this order. With `documents=none`, several
    files are joined by newlines.

    Downloads and `Corpus.notice` are logged to the logger `charjax`.

    Args:
      config: which text, and how it is processed.
      progress: called during a download with the bytes received and expected (0: unknown).

    Raises:
      InputError: there is no such corpus, file or marker, the text cannot be decoded
        or parsed, or it is empty.
      HostError: the corpus can be neither found nor downloaded, or a file not read.
    """
    if config.path:
        return _process(config.path, _read_path(config.path), config)
    check_name(config.corpus, "config.data.corpus")
    if config.offline:
        check_name(config.offline, "config.data.offline")
    try:
        return _process(config.corpus, [read_named(config.corpus, progress=progress)], config)
    except CorpusUnavailableError as error:
        if not config.offline:
            raise HostError(
                f"{error}, or set config.data.path=FILE, or config.data.offline={BUILT_IN}"
            ) from error
        notice = f"{config.offline!r} REPLACES the corpus {config.corpus!r}: {error}"
    substitute = read_named(config.offline, progress=progress)
    # Markers, columns and encoding describe the missing file.
    plain = replace(config, encoding="utf-8", start="", end="", documents="none", columns=())
    return _process(config.offline, [substitute], plain, notice)


def read_text(file: str, config: DataConfig) -> str:
    """Reads a whole text, decoded and normalized as the corpus of the config, without markers.

    Args:
      file: a path, or "-" for standard input.
      config: of the corpus with which the model was trained.

    Raises:
      InputError: there is no such file, or it cannot be decoded.
      HostError: it cannot be read.
    """
    config = replace(config, start="", end="")
    if file == "-":
        raw = RawText("standard input", sys.stdin.buffer.read())
    else:
        raw = _read(file, f"--file={file}")
    return _normalize(_decode(raw, config), raw.origin, config)


def _process(name: str, files: Sequence[RawText], config: DataConfig, *notices: str) -> Corpus:
    """The corpus made of these files."""
    decoded = [(file.origin, _decode(file, config)) for file in files]
    notices += tuple(notice for file in files for notice in file.notices) + _bom_notices(decoded)
    normalized = [(origin, _normalize(text, origin, config)) for origin, text in decoded]
    documents = [document for document in _documents(normalized, config) if document]
    if not documents:
        raise InputError(f"{name}: the text is empty; give one with characters in it")
    for notice in notices:
        _logger.warning("NOTICE: %s", notice)
    text = "".join(documents)
    starts = np.cumsum([0] + [len(document) for document in documents[:-1]], dtype=np.int64)
    return Corpus(name, text, starts, _digest(text, name), "; ".join(notices))


def _read_path(given: str) -> list[RawText]:
    """The files of a path, a folder or a glob, in the order of their names."""
    path = os.path.expanduser(given)
    if os.path.isdir(path):
        paths = [str(p) for p in Path(path).rglob("*.txt") if p.is_file()]
    elif glob.has_magic(path) and not os.path.exists(path):
        paths = [p for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
    else:
        paths = [path]
    if not paths:
        raise InputError(
            f"config.data.path={given!r}: no text file there; "
            "give a file, a folder with *.txt, or a glob such as 'texts/**/*.txt'"
        )
    return [_read(p, f"config.data.path={given!r}") for p in sorted(paths)]


def _read(path: str, option: str) -> RawText:
    try:
        return RawText(path, Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise InputError(f"{option}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{option}: is a folder; name a file in it") from error
    except OSError as error:
        raise HostError(f"{path}: cannot be read ({error.strerror}); check its rights") from error


def _decode(file: RawText, config: DataConfig) -> str:
    if config.unit == "byte":
        return bytes_to_text(file.data)
    try:
        return file.data.decode(config.encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file.origin}: byte 0x{file.data[error.start]:02X} at offset {error.start} is not "
            f"valid {config.encoding}; set config.data.encoding to what the file has "
            "(such as latin-1), or config.data.unit=byte"
        ) from error
    except (LookupError, ValueError) as error:
        raise InputError(
            f"{file.origin}: cannot be decoded with config.data.encoding={config.encoding!r}; "
            "name a text encoding that Python knows, such as utf-8"
        ) from error


def _bom_notices(decoded: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    marked = [origin for origin, text in decoded if text.startswith(_BOM)]
    more = f" and {len(marked) - 1} more files" if len(marked) > 1 else ""
    return (f"dropped the byte order mark of {marked[0]}{more}",) if marked else ()


def _normalize(text: str, origin: str, config: DataConfig) -> str:
    """The text without byte order mark, with the config's line ends, markers and case."""
    text = text.removeprefix(_BOM)
    if config.newlines == "unix":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text[_find_marker(text, origin, "start", config) :]
    text = text[: _find_marker(text, origin, "end", config)]
    if not config.lowercase:
        return text
    if config.unit == "byte":  # ASCII letters only: the others take several bytes
        return text.encode("latin-1").lower().decode("latin-1")
    return text.lower()


def _find_marker(text: str, origin: str, field: str, config: DataConfig) -> int | None:
    """The position of the marker in `data.start` or `data.end`; None if there is no marker."""
    marker: str = getattr(config, field)
    if not marker:
        return None
    position = text.find(bytes_to_text(marker.encode()) if config.unit == "byte" else marker)
    if position < 0:
        raise InputError(
            f"config.data.{field}={marker!r}: not in {origin}; copy the marker from the text, "
            "or leave it empty"
        )
    return position


def _documents(texts: Sequence[tuple[str, str]], config: DataConfig) -> list[str]:
    """The documents of (origin, text) pairs; some may be empty."""
    if config.documents == "none":
        return ["\n".join(text for _, text in texts)]
    if config.documents == "files":
        return [text for _, text in texts]
    if config.documents == "lines":  # splitlines() would also break at other characters
        return [line for _, text in texts for line in io.StringIO(text, newline="\n")]
    return [row for origin, text in texts for row in _rows(text, origin, config.columns)]


def _rows(text: str, origin: str, columns: tuple[int, ...]) -> list[str]:
    """The given columns of each CSV row (none given: all), joined by a space."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    documents = []
    try:
        for row in reader:
            wanted = columns or range(len(row))
            if row and not all(0 <= column < len(row) for column in wanted):
                raise InputError(
                    f"config.data.columns={columns}: line {reader.line_num} of {origin} has "
                    f"{len(row)} columns, numbered from 0; name columns that every row has"
                )
            documents.append(" ".join(row[column] for column in wanted) if row else "")
    except csv.Error as error:
        raise InputError(
            f"{origin}: line {reader.line_num} is not valid CSV ({error}); correct the file, "
            "or set config.data.documents=lines"
        ) from error
    return documents


def _digest(text: str, name: str) -> str:
    try:
        return hashlib.sha256(text.encode("utf-8")).hexdigest()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}: character {error.start} is half of a surrogate pair, not a character; "
            "correct the file or config.data.encoding"
        ) from error
