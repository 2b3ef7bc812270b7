"""The corpus of a run: a text, read by name or by path, and its documents."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from charjax.config import DataConfig
from charjax.data.packed.store import TextStore, is_store
from charjax.data.reading.documents import Piece
from charjax.data.reading.reader import TextReader
from charjax.data.reading.rules import ReadingRules
from charjax.data.sources import named_corpora
from charjax.data.sources.file_search import check_no_pipe, find_files
from charjax.data.sources.files import read_files
from charjax.data.sources.named_corpora import BUILT_IN
from charjax.data.sources.raw_text import RawText
from charjax.data.tokens.cached_text import CachedText
from charjax.data.tokens.encoded_text import EncodedText
from charjax.data.tokens.text_cache import read_through
from charjax.data.tokens.text_encoder import encode_pieces
from charjax.errors import HostError, InputError
from charjax.runtime.display import ProgressFn, no_progress
from charjax.runtime.paths import expand_path

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text and its documents, in memory or packed.

    Attributes:
      name: the name of the corpus, or the path it was read from.
      content: the text.
      characters: its distinct characters, as they first appear; with `data.unit=byte`, those of
        `bytes_to_text`.
      chars: how many characters it has.
      sha256: hexadecimal digest of the text's UTF-8, after all processing; with document
        boundaries, of the positions of the documents too. Of a packed text, that of its shards.
      notice: a warning to the user about the text, without folders, or "".
      rules: how it was read.
    """

    name: str
    content: EncodedText | TextStore
    characters: Sequence[str]
    chars: int
    sha256: str
    notice: str
    rules: ReadingRules

    @property
    def text(self) -> str:
        """The text in memory; one character a token, with `data.unit=byte` too.

        Raises:
          InputError: the text is packed.
        """
        return self._in_memory().text()

    @property
    def document_starts(self) -> Int[np.ndarray, " documents"]:
        """The int64 positions in `text` where documents start, ascending from 0."""
        return self._in_memory().document_starts()

    @property
    def num_documents(self) -> int:
        """How many documents the text has."""
        if isinstance(self.content, TextStore):
            return self.content.index.num_documents
        return len(self.content.starts)

    def _in_memory(self) -> EncodedText:
        if isinstance(self.content, TextStore):
            raise InputError(
                f"{self.name}: is a packed text; train on it with --config and "
                f"--config.data.path={self.name}"
            )
        return self.content


def load_corpus(
    config: DataConfig, *, progress: ProgressFn = no_progress, use_cache: bool = True
) -> Corpus:
    """Reads and prepares the corpus that the config names, or opens the packed text.

    Downloads and `Corpus.notice` are logged to the logger `charjax`.

    Args:
      config: which text to read, and how.
      progress: called during a download with the bytes received and expected (0: unknown).
      use_cache: whether a large text that was read before may come from the cache, see
        `charjax.data.tokens.text_cache`.

    Raises:
      InputError: there is no such corpus, file or marker, or the text cannot be decoded or parsed,
        or is empty.
      StoreError: the packed text is damaged.
      HostError: the corpus can be neither found nor downloaded, or a file cannot be read.
    """
    rules = ReadingRules.from_config(config)
    if config.path and is_store(config.path):
        return _open_store(config)
    if config.path:
        return _load_files(config.path, rules, use_cache=use_cache)
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
        _logger.warning(f"NOTICE: {error}")
        notice = f"{config.offline!r} REPLACES the corpus {config.corpus!r}"
    substitute = named_corpora.read_named(config.offline, progress=progress)
    # Markers, columns and encoding are those of the missing text, not of its substitute.
    plain = replace(config, encoding="utf-8", start="", end="", documents="none", columns=())
    return _make_corpus(config.offline, [substitute], ReadingRules.from_config(plain), notice)


def _load_files(path: str, rules: ReadingRules, *, use_cache: bool) -> Corpus:
    """The corpus of a path, from the cache if it has been read before."""
    option = "config.data.path"
    files = find_files(path, option)
    check_no_pipe(files, option)

    def read() -> CachedText:
        corpus = _make_corpus(path, read_files(files, option, are_utf8=rules.is_utf8), rules)
        content, characters = corpus._in_memory(), corpus.characters
        # With the ids of a sorted vocabulary, the default, a run need not translate the tokens.
        content = content.recoded(sorted(characters), len(content.alphabet))
        about = {"name": path, "content": None, "rules": corpus.rules.to_json()}
        return content, vars(corpus) | about

    content, about = read_through(files, rules, read) if use_cache else read()
    about |= {"name": path, "content": content, "rules": ReadingRules.from_json(about["rules"])}
    return Corpus(**about)


def _make_corpus(name: str, files: Iterable[RawText], rules: ReadingRules, *notices: str) -> Corpus:
    """The corpus of these files; logs its notices."""
    reader, digest = TextReader(rules), hashlib.sha256()
    content = encode_pieces(
        name,
        _hashed(reader.pieces(files), digest),
        boundary=rules.documents.boundary,
        is_one=rules.documents.mode == "none",
    )
    if not content.num_chars:
        raise InputError(f"{name}: the text is empty; give one with characters in it")
    reader.documents.check_delimiter()
    if rules.documents.boundary:
        digest.update(content.document_starts().astype("<i8").tobytes())
    notices += reader.finish()
    characters = [character for character in content.alphabet if character]
    return Corpus(
        name=name,
        content=content,
        characters=characters,
        chars=content.num_chars,
        sha256=digest.hexdigest(),
        notice=_logged(notices),
        rules=reader.rules,
    )


def _hashed(pieces: Iterator[Piece], digest: Any) -> Iterator[Piece]:
    """The pieces; adds the UTF-8 of each to the digest after it was used, and so found valid."""
    for piece in pieces:
        yield piece
        digest.update(piece.text.encode("utf-8"))


def _open_store(config: DataConfig) -> Corpus:
    """The corpus of a packed text; logs its notices.

    Raises:
      InputError: the text is not complete, or was read in another way than the config says.
      StoreError: it is damaged.
      HostError: it cannot be read.
    """
    store = TextStore(expand_path(config.path, "config.data.path"))
    wanted, packed = (_flat(rules) for rules in (ReadingRules.from_config(config), store.rules))
    for name, value in wanted.items():
        if value != packed[name] and not (name == "csv_delimiter" and not value):
            raise InputError(
                f"config.data.{name}={value!r}: {config.path} was packed with {packed[name]!r}; "
                f"set config.data.{name} to that, or pack the text again"
            )
    if config.shuffle_documents:
        raise InputError(
            "config.data.shuffle_documents=True: a packed text keeps its order; leave it out, or "
            "shuffle the documents before they are packed"
        )
    index = store.index
    return Corpus(
        name=config.path,
        content=store,
        characters=index.characters,
        chars=index.chars,
        sha256=index.sha256,
        notice=_logged(index.notices),
        rules=store.rules,
    )


def _logged(notices: tuple[str, ...]) -> str:
    """The notices as one; logs each."""
    for notice in notices:
        _logger.warning("NOTICE: %s", notice)
    return "; ".join(notices)


def _flat(rules: ReadingRules) -> dict[str, Any]:
    """The rules by the names of their config fields."""
    values = rules.to_json()
    documents = values.pop("documents")
    return {**values, "documents": documents.pop("mode"), **documents}
