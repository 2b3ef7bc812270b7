"""The text of a run: found by name or by path, decoded, cut to size, split into documents."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from charjax.config import DataConfig
from charjax.data.download import Progress
from charjax.data.named_corpora import (
    BUILT_IN,
    CorpusUnavailableError,
    File,
    check_name,
    read_named,
)
from charjax.errors import HostError, InputError

_BOM = "\ufeff"


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text and where its documents begin.

    Attributes:
      name: the corpus that was read, or the path it was read from.
      text: one character a symbol; with bytes as the unit, byte b is the character U+00b.
      starts: int64 offsets in symbols at which documents begin, rising from 0.
      sha256: hexadecimal digest of the text's UTF-8, after all processing.
      notice: what the person must be told about the text, or "".
    """

    name: str
    text: str
    starts: Int[np.ndarray, " documents"]
    sha256: str
    notice: str


class _Found(NamedTuple):
    name: str
    files: list[File]
    notices: list[str]
    config: DataConfig  # with only those options that apply to these files


def load_corpus(config: DataConfig, *, report: Callable[[str], None], progress: Progress) -> Corpus:
    """The corpus that the config names, processed as it says.

    Each file is decoded, its line ends are unified, it is cut at the markers, turned to
    lower case and taken apart into documents, in this order. Several files are joined by
    a newline, unless files, lines or rows are documents: those follow each other directly.

    Args:
      config: which text, and what is done to it.
      report: told of downloads and of everything in `Corpus.notice`.
      progress: told of bytes downloaded, and bytes in all or 0.

    Raises:
      InputError: there is no such corpus, file or marker, the text cannot be decoded
        or parsed, or nothing is left of it.
      HostError: the corpus can be neither found nor downloaded, or a file not read.
    """
    found = _by_path(config) if config.path else _by_name(config, report, progress)
    decoded = [(file.where, _decode(file, found.config)) for file in found.files]
    notices = found.notices + _bom_notices(decoded)
    cleaned = [(where, _clean(text, where, found.config)) for where, text in decoded]
    documents = [document for document in _documents(cleaned, found.config) if document]
    if not documents:
        raise InputError(f"{found.name}: the text is empty; give one with characters in it")
    for notice in notices:
        report(f"NOTICE: {notice}")
    text = "".join(documents)
    starts = np.cumsum([0] + [len(document) for document in documents[:-1]], dtype=np.int64)
    return Corpus(found.name, text, starts, _digest(text, found.name), "; ".join(notices))


def read_text(file: str, config: DataConfig) -> str:
    """A user's text, decoded and normalised as a corpus is, but whole: without markers.

    Args:
      file: a path, or "-" for standard input.
      config: of the corpus that the text is to be compared with.

    Raises:
      InputError: there is no such file, or it cannot be decoded.
      HostError: it cannot be read.
    """
    whole = replace(config, start="", end="")
    if file == "-":
        found = File("standard input", sys.stdin.buffer.read())
    else:
        found = _read(file, f"--file={file}")
    return _clean(_decode(found, whole), found.where, whole)


def _by_name(config: DataConfig, report: Callable[[str], None], progress: Progress) -> _Found:
    check_name(config.corpus, "config.data.corpus")
    if config.offline:
        check_name(config.offline, "config.data.offline")
    try:
        file, notices = read_named(config.corpus, report=report, progress=progress)
        return _Found(config.corpus, [file], notices, config)
    except CorpusUnavailableError as error:
        if not config.offline:
            raise HostError(
                f"{error}, or set config.data.path=FILE, or config.data.offline={BUILT_IN}"
            ) from error
        reason = f"{config.offline!r} REPLACES the corpus {config.corpus!r}: {error}"
    file, notices = read_named(config.offline, report=report, progress=progress)
    # Markers, columns and encoding describe the file that is not there.
    plain = replace(config, encoding="utf-8", start="", end="", documents="none", columns=())
    return _Found(config.offline, [file], [reason, *notices], plain)


def _by_path(config: DataConfig) -> _Found:
    path = os.path.expanduser(config.path)
    if os.path.isdir(path):
        paths = [str(p) for p in Path(path).rglob("*.txt") if p.is_file()]
    elif glob.has_magic(path) and not os.path.exists(path):
        paths = [p for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
    else:
        paths = [path]
    if not paths:
        raise InputError(
            f"config.data.path={config.path!r}: no text file there; "
            "give a file, a folder with *.txt, or a glob such as 'texts/**/*.txt'"
        )
    named = f"config.data.path={config.path!r}"
    return _Found(config.path, [_read(p, named) for p in sorted(paths)], [], config)


def _read(path: str, named: str) -> File:
    try:
        return File(path, Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise InputError(f"{named}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{named}: is a folder; name a file in it") from error
    except OSError as error:
        raise HostError(f"{path}: cannot be read ({error.strerror}); check its rights") from error


def _decode(file: File, config: DataConfig) -> str:
    if config.unit == "byte":
        return file.data.decode("latin-1")
    try:
        return file.data.decode(config.encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file.where}: byte 0x{file.data[error.start]:02X} at offset {error.start} is not "
            f"valid {config.encoding}; set config.data.encoding to what the file has "
            "(such as latin-1), or config.data.unit=byte"
        ) from error
    except (LookupError, ValueError) as error:
        raise InputError(
            f"{file.where}: cannot be decoded with config.data.encoding={config.encoding!r}; "
            "name a text encoding that Python knows, such as utf-8"
        ) from error


def _bom_notices(decoded: Sequence[tuple[str, str]]) -> list[str]:
    marked = [where for where, text in decoded if text.startswith(_BOM)]
    more = f" and {len(marked) - 1} more files" if len(marked) > 1 else ""
    return [f"dropped the byte order mark of {marked[0]}{more}"] if marked else []


def _clean(text: str, where: str, config: DataConfig) -> str:
    text = text.removeprefix(_BOM)
    if config.newlines == "unix":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text[_position(text, where, "start", config) :]
    text = text[: _position(text, where, "end", config)]
    if not config.lowercase:
        return text
    if config.unit == "byte":  # the letters of ASCII alone: the others span bytes
        return text.encode("latin-1").lower().decode("latin-1")
    return text.lower()


def _position(text: str, where: str, field: str, config: DataConfig) -> int | None:
    """Where the marker of this config field is, or None where there is no marker."""
    marker: str = getattr(config, field)
    if not marker:
        return None
    symbols = marker.encode("utf-8").decode("latin-1") if config.unit == "byte" else marker
    position = text.find(symbols)
    if position < 0:
        raise InputError(
            f"config.data.{field}={marker!r}: not in {where}; copy the marker from the text, "
            "or leave it empty"
        )
    return position


def _documents(cleaned: Sequence[tuple[str, str]], config: DataConfig) -> list[str]:
    if config.documents == "none":
        return ["\n".join(text for _, text in cleaned)]
    if config.documents == "files":
        return [text for _, text in cleaned]
    if config.documents == "lines":  # splitlines() would also break at other characters
        return [line for _, text in cleaned for line in io.StringIO(text, newline="\n")]
    return [row for where, text in cleaned for row in _rows(text, where, config.columns)]


def _rows(text: str, where: str, columns: tuple[int, ...]) -> list[str]:
    """The wanted columns of each CSV row (none named: all), joined by a blank."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    documents = []
    try:
        for row in reader:
            wanted = columns or range(len(row))
            if row and not all(0 <= column < len(row) for column in wanted):
                raise InputError(
                    f"config.data.columns={columns}: line {reader.line_num} of {where} has "
                    f"{len(row)} columns, numbered from 0; name columns that every row has"
                )
            documents.append(" ".join(row[column] for column in wanted) if row else "")
    except csv.Error as error:
        raise InputError(
            f"{where}: line {reader.line_num} is no CSV ({error}); mend the file, "
            "or set config.data.documents=lines"
        ) from error
    return documents


def _digest(text: str, name: str) -> str:
    try:
        return hashlib.sha256(text.encode("utf-8")).hexdigest()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}: character {error.start} is half of a surrogate pair, which is no "
            "character; mend the file or config.data.encoding"
        ) from error
