"""Writes one shard of a packed text: its tokens, its documents, and last its record."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from charjax.data.packed import files
from charjax.data.packed.files import LAYOUT, array_spec, write_file
from charjax.data.packed.index import (
    ShardDigests,
    ShardRecord,
    ShardText,
    array_name,
    record_name,
)
from charjax.data.packed.plan import Plan, Segment
from charjax.data.reading.decoding import FLAG_PREFIX
from charjax.data.reading.documents import Piece
from charjax.data.reading.reader import Findings, TextReader
from charjax.data.sources.raw_text import RawText
from charjax.data.tokens.document_hash import DocumentHasher
from charjax.data.tokens.encoded_text import BOUNDARY
from charjax.data.tokens.text_encoder import TextEncoder

_PIECE = 1 << 18  # characters encoded at a time, at least
_MAX_LENGTH = 1 << 40  # tokens of an array, before its length is known


class ShardWriter:
    """Reads, encodes and writes one shard, and last its record."""

    def __init__(self, store: ts.KvStore, number: int, plan: Plan) -> None:
        self._store, self._number, self._plan = store, number, plan
        self._input, self._input_bytes = hashlib.sha256(), 0
        self._findings = Findings()

    def write(self) -> Findings:
        """Writes tokens, document starts and the record; returns what was found in the files.

        Raises:
          InputError, HostError: see `pack`.
        """
        dtype = "uint8"
        while (record := self._write(dtype)) is None:
            dtype = {"uint8": "uint16", "uint16": "uint32"}[dtype]
        self._plan.check_unchanged(self._number)
        write_file(self._store, record_name(self._number), record.to_bytes())
        return self._findings

    def _write(self, dtype: str) -> ShardRecord | None:
        """Writes the arrays; returns None if the dtype of the tokens is too small."""
        self._input, self._input_bytes = hashlib.sha256(), 0
        shard, rules = self._plan.shards[self._number], self._plan.reading
        origin = self._plan.inputs[shard[0].file]["path"] if shard else "the text"
        has_text_before = self._plan.has_text_before(self._number)
        reader = TextReader(rules, prefix=FLAG_PREFIX, files_before=has_text_before)
        encoder = TextEncoder(origin, boundary=rules.documents.boundary)
        tokens = _ArrayWriter(self._store, array_name("tokens", self._number), dtype)
        starts, hasher = [np.zeros(0, np.int64)], DocumentHasher()
        for piece in _merged(self._pieces(reader, shard)):
            encoded, first_tokens = encoder.encode(piece)
            starts.append(first_tokens)
            hasher.add(piece)
            if not tokens.append(encoded):
                return None
        if self._number == len(self._plan.shards) - 1:
            tokens.append(encoder.end())
        documents = self._appended("starts", np.concatenate(starts))
        hashes = self._appended("hashes", self._finish(hasher))
        layouts = [array.finish() for array in (tokens, documents, hashes) if array.size]
        self._findings = reader.findings()
        text = ShardText(
            alphabet="".join(encoder.alphabet),
            boundary=BOUNDARY in encoder.alphabet,
            dtype=tokens.dtype,
            tokens=tokens.size,
            documents=documents.size,
            chars=encoder.num_chars,
            has_delimiter=reader.documents.has_delimiter,
            notices=tuple(self._findings.notices),
        )
        digests = ShardDigests(
            sha256=tokens.sha256.hexdigest(),
            starts_sha256=documents.sha256.hexdigest(),
            layout_sha256=hashlib.sha256(b"".join(layouts)).hexdigest(),
            input_sha256=self._input.hexdigest(),
            input_bytes=self._input_bytes,
            hashes_sha256=hashes.sha256.hexdigest() if hashes.size else "",
            with_bom=tuple(self._findings.with_bom),
        )
        return ShardRecord(text, digests)

    def _appended(self, kind: str, values: np.ndarray) -> _ArrayWriter:
        """An array of the shard with these values, not yet finished."""
        array = _ArrayWriter(self._store, array_name(kind, self._number), values.dtype.name)
        array.append(values)
        return array

    def _finish(self, hasher: DocumentHasher) -> np.ndarray:
        """The hashes of the shard's documents, of which the last one may end in another shard."""
        for piece in self._following() if hasher.needs_more else ():
            hasher.extend(piece.text[: piece.starts[0]] if piece.starts else piece.text)
            if piece.starts or not hasher.needs_more:
                break
        return hasher.finish()

    def _following(self) -> Iterator[Piece]:
        """The text after the shard, as far as it is in the same file."""
        reader = TextReader(self._plan.reading, prefix=FLAG_PREFIX)
        for segment in itertools.chain(*self._plan.shards[self._number + 1 :]):
            if self._plan.field or not segment.begin:
                return
            yield from reader.pieces(self._plan.texts(segment), continues=True)

    def _pieces(self, reader: TextReader, shard: Sequence[Segment]) -> Iterator[Piece]:
        for segment in shard:
            texts = map(self._hashed, self._plan.texts(segment))
            yield from reader.pieces(texts, continues=segment.begin > 0 and not self._plan.field)

    def _hashed(self, text: RawText) -> RawText:
        def blocks() -> Iterator[bytes]:
            for block in text.blocks:
                self._input.update(block)
                self._input_bytes += len(block)
                yield block

        return text._replace(blocks=blocks())


class _ArrayWriter:
    """Appends to an array in a store, which has its length in the end.

    Attributes:
      dtype: of the array.
      size: elements appended.
      sha256: of the elements, little-endian.
    """

    def __init__(self, store: ts.KvStore, name: str, dtype: str) -> None:
        self.dtype, self.size, self.sha256 = dtype, 0, hashlib.sha256()
        self._store, self._name = store, name
        self._waiting: list[np.ndarray] = []
        self._array: ts.TensorStore | None = None
        self._write: Any = None  # of the last file that was full

    def append(self, values: np.ndarray) -> bool:
        """Appends values; False if their dtype does not fit into that of the array."""
        if values.dtype.itemsize > np.dtype(self.dtype).itemsize:
            return False
        self._waiting.append(values)
        self.size += len(values)
        if sum(map(len, self._waiting)) >= files.FILE_TOKENS:
            self._flush()
        return True

    def finish(self) -> bytes:
        """Writes the rest; returns TensorStore's description of the array."""
        self._flush(everything=True)
        self._wait()
        assert self._array is not None
        self._array.resize(exclusive_max=[self.size], resize_metadata_only=True).result()
        written: bytes = self._store.read(f"{self._name}/{LAYOUT}").result().value
        return written

    def _flush(self, *, everything: bool = False) -> None:
        """Writes the files that are full, or all values."""
        values = np.concatenate(self._waiting).astype(self.dtype, copy=False)
        begin = self.size - len(values)
        file_tokens = files.FILE_TOKENS
        count = len(values) if everything else len(values) // file_tokens * file_tokens
        if self._array is None:
            spec = array_spec(self._store, self._name, self.dtype, _MAX_LENGTH)
            self._array = ts.open(spec, create=True, delete_existing=True).result()
        for first in range(0, count, file_tokens):
            part = values[first : min(count, first + file_tokens)]
            self._wait()
            at = slice(begin + first, begin + first + len(part))
            self._write = self._array[at].write(part)
            self.sha256.update(part.data)
        self._waiting = [values[count:]]

    def _wait(self) -> None:
        if self._write is not None:
            self._write.result()


def _merged(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same text in pieces that are not small."""
    texts: list[str] = []
    starts: list[int] = []
    size = 0
    for piece in pieces:
        texts.append(piece.text)
        starts.extend(size + start for start in piece.starts)
        size += len(piece.text)
        if size >= _PIECE:
            yield Piece("".join(texts), starts)
            texts, starts, size = [], [], 0
    yield Piece("".join(texts), starts)
