"""The corpus of a run: a text, read by name or by path, and its documents."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Int

from charjax.config import DataConfig
from charjax.data import named_corpora
from charjax.data.files import find_files, read_files
from charjax.data.named_corpora import BUILT_IN, RawText
from charjax.data.reading import PreparedText, ReadingRules, prepare_text
from charjax.errors import HostError, InputError
from charjax.runtime.display import ProgressFn, no_progress

_BLOCK = 1 << 20  # bytes

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text and its documents.

    Attributes:
      name: the name of the corpus, or the path it was read from.
      text: one character a token; with `data.unit=byte`, as `bytes_to_text` returns it.
      document_starts: int64 positions in the text, ascending from 0.
      sha256: hexadecimal digest of the text's UTF-8, after all processing; with document
        boundaries, of the positions of the documents too.
      notice: a warning to the user about the text, or "".
      rules: how it was read.
    """

    name: str
    text: str
    document_starts: Int[np.ndarray, " documents"]
    sha256: str
    notice: str
    rules: ReadingRules


def load_corpus(config: DataConfig, *, progress: ProgressFn = no_progress) -> Corpus:
    """Reads and prepares the corpus that the config names; see `prepare_text`.

    Downloads and `Corpus.notice` are logged to the logger `charjax`.

    Args:
      config: which text to read, and how.
      progress: called during a download with the bytes received and expected (0: unknown).

    Raises:
      InputError: there is no such corpus, file or marker, or the text cannot be decoded or parsed,
        or is empty.
      HostError: the corpus can be neither found nor downloaded, or a file cannot be read.
    """
    rules = ReadingRules.from_config(config)
    if config.path:
        return _make_corpus(config.path, _read_path(config.path, rules), rules)
    named_corpora.check_name(config.corpus, "config.data.corpus")
    if config.offline:
        named_corpora.check_name(config.offline, "config.data.offline")
    try:
        return _make_corpus(
            config.corpus, [named_corpora.read_named(config.corpus, progress=progress)], rules
        )
    except named_corpora.CorpusUnavailableError as error:
        if not config.offline:
            raise HostError(
                f"{error}, or set config.data.path=FILE, or config.data.offline={BUILT_IN}"
            ) from error
        notice = f"{config.offline!r} REPLACES the corpus {config.corpus!r}: {error}"
    substitute = named_corpora.read_named(config.offline, progress=progress)
    # Markers, columns and encoding are those of the missing text, not of its substitute.
    plain = replace(config, encoding="utf-8", start="", end="", documents="none", columns=())
    return _make_corpus(config.offline, [substitute], ReadingRules.from_config(plain), notice)


def read_text(
    file: str, rules: ReadingRules, *, are_markers_required: bool = False
) -> PreparedText:
    """Reads a text for `charjax score`, as the run's own text was read.

    Args:
      file: a path as in `data.path`, or "-" for standard input.
      rules: those of the run, changed by the options for this file.
      are_markers_required: see `prepare_text`.

    Raises:
      InputError: there is no such file, or it cannot be decoded or parsed.
      HostError: it cannot be read.
    """
    if file == "-":
        files: Iterable[RawText] = [
            RawText("standard input", iter(partial(sys.stdin.buffer.read, _BLOCK), b""))
        ]
    else:
        files = read_files(find_files(file, "--file"), "--file", are_utf8=rules.is_utf8)
    return prepare_text(files, rules, are_markers_required=are_markers_required, options="--")


def _read_path(path: str, rules: ReadingRules) -> Iterable[RawText]:
    if path == "-":
        raise InputError(
            "config.data.path=-: standard input cannot be read again when the run is resumed; "
            "save the text to a file"
        )
    option = "config.data.path"
    return read_files(find_files(path, option), option, are_utf8=rules.is_utf8)


def _make_corpus(name: str, files: Iterable[RawText], rules: ReadingRules, *notices: str) -> Corpus:
    """The corpus of these files; logs its notices."""
    prepared = prepare_text(files, rules)
    if not prepared.text:
        raise InputError(f"{name}: the text is empty; give one with characters in it")
    notices += prepared.notices
    for notice in notices:
        _logger.warning("NOTICE: %s", notice)
    sha256 = _digest(prepared, name)
    return Corpus(
        name, prepared.text, prepared.document_starts, sha256, "; ".join(notices), prepared.rules
    )


def _digest(prepared: PreparedText, name: str) -> str:
    try:
        digest = hashlib.sha256(prepared.text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}: character {error.start} is half of a surrogate pair, not a character; "
            "correct the file or config.data.encoding"
        ) from error
    if prepared.rules.documents.boundary:
        digest.update(prepared.document_starts.astype("<i8").tobytes())
    return digest.hexdigest()
