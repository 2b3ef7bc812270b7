"""A packed text: a folder of zarr arrays of tokens, read through TensorStore as one array.

`charjax.data.packed.pack` writes it. A shard is the part of the text that one process packs at a
time: its tokens, its documents' starts, and a record with its alphabet and their digests.
`store.json` lists the shards, with the digest of each record; `charjax.data.packed.index` describes
both.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from charjax.data.packed import files
from charjax.data.packed.files import HOST_ERRORS, LAYOUT, few_retries, open_files
from charjax.data.packed.index import (
    INDEX,
    PLAN,
    Index,
    ShardRecord,
    array_name,
    is_plan,
    record_name,
)
from charjax.data.reading.rules import ReadingRules
from charjax.errors import HostError, InputError, StoreError, first_line
from charjax.runtime.display import ProgressFn, no_progress
from charjax.runtime.files import as_os_errors
from charjax.runtime.paths import is_address


def is_store(path: str) -> bool:
    """Whether a path is an address, or a folder that holds a packed text, perhaps unfinished."""
    folder = Path(os.path.expandvars(os.path.expanduser(path)))
    return is_address(path) or (folder / INDEX).is_file() or has_plan(folder)


def has_plan(folder: Path) -> bool:
    """Whether a folder holds the plan of an unfinished pack."""
    path = folder / PLAN
    with contextlib.suppress(OSError):
        return path.is_file() and is_plan(path.read_bytes())
    return False


class TextStore:
    """A packed text, opened for reading.

    Attributes:
      path: the folder or the address.
      index: what it holds.
      shards: the parts of the text.
      ends: the position after each shard's last token.
      rules: how the text was read.
    """

    def __init__(self, path: str) -> None:
        """Reads `store.json`.

        Raises:
          InputError: there is no packed text, or it is not complete.
          StoreError: it is damaged.
          HostError: it cannot be read.
        """
        self.path = path
        self._files = open_files(path, few_retries())
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": 1 << 20}})
        data = self._read_file(INDEX)
        if data is None:
            remedy = (
                "finish it by the same `charjax pack`"
                if self._read_file(PLAN) is not None
                else "make one by `charjax pack`"
            )
            raise InputError(f"{path}: holds no complete packed text; {remedy}")
        try:
            self.index = Index.from_bytes(data)
        except InputError as error:
            raise self._damaged(INDEX, str(error)) from error
        self._files = open_files(path)
        self.shards = self.index.shards
        self.ends = np.cumsum([shard.tokens for shard in self.shards], dtype=np.int64)
        self.rules = ReadingRules.from_json(self.index.reading)

    def record(self, number: int) -> ShardRecord:
        """The record of a shard.

        Raises:
          StoreError: it is missing or damaged.
        """
        name = record_name(number)
        data = self._read_file(name)
        if data is None or hashlib.sha256(data).hexdigest() != self.shards[number].record:
            raise self._damaged(name, "missing" if data is None else "differs from its digest")
        return ShardRecord.from_bytes(data)

    def array(self, kind: str, number: int, dtype: str) -> ts.TensorStore:
        """An array of a shard; its kind is "tokens", "starts" or "hashes"."""
        shard, name = self.shards[number], array_name(kind, number)
        size = shard.tokens if kind == "tokens" else shard.documents
        spec = files.array_spec(self._files, name, dtype, size)
        opened = ts.open(spec, open=True, assume_metadata=True, read=True, context=self._context)
        return opened.result()

    def document_starts(self) -> np.ndarray:
        """The positions in the text of all documents' first tokens, int64."""
        if self.rules.documents.mode == "none":
            return np.zeros(1, np.int64)
        begins = np.append(0, self.ends[:-1])
        begins = np.repeat(begins, [shard.documents for shard in self.shards])
        starts = self._read_documents("starts", "int64")
        starts += begins
        return starts if len(starts) else np.zeros(1, np.int64)

    def document_hashes(self) -> np.ndarray:
        """The hashes of all documents, see `charjax.data.tokens.document_hash`.

        Raises:
          InputError: an older version packed the text, without them.
        """
        for number, shard in enumerate(self.shards):
            if shard.documents and not self.record(number).digests.hashes_sha256:
                raise InputError(
                    f"{self.path}: was packed by an older version, without the hashes that "
                    "config.data.split_by=hash needs; pack the text again"
                )
        return self._read_documents("hashes", "uint32")

    def _read_documents(self, kind: str, dtype: str) -> np.ndarray:
        """An array of all shards that has an element for each document."""
        parts = [np.zeros(0, dtype)]
        for number in range(len(self.shards)):
            array = self.array(kind, number, dtype)
            parts.append(self.result(array.read(), array_name(kind, number)))
        return np.concatenate(parts)

    def verify(self, progress: ProgressFn = no_progress) -> Iterator[tuple[int, str]]:
        """Reads everything; yields each shard's number, and its damage or ""."""
        for number in range(len(self.shards)):
            try:
                self._verify(number)
            except StoreError as error:
                yield number, str(error)
            else:
                yield number, ""
            progress(number + 1, len(self.shards))

    def _verify(self, number: int) -> None:
        text, digests = self.record(number)
        layout = hashlib.sha256()
        for kind, dtype, sha256 in (
            ("tokens", text.dtype, digests.sha256),
            ("starts", "int64", digests.starts_sha256),
            ("hashes", "uint32", digests.hashes_sha256),
        ):
            if not sha256:  # there are no hashes
                continue
            name, digest = array_name(kind, number), hashlib.sha256()
            layout.update(self._read_file(f"{name}/{LAYOUT}") or b"")
            array = self.array(kind, number, dtype)
            for begin in range(0, array.size, files.FILE_TOKENS):
                end = min(array.size, begin + files.FILE_TOKENS)
                digest.update(self.result(array[begin:end].read(), name).data)
            if digest.hexdigest() != sha256:
                raise self._damaged(name, "differs from its digest")
        if layout.hexdigest() != digests.layout_sha256:
            raise self._damaged(f"{number:05}/{LAYOUT}", "differs from its digest")

    def _read_file(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        found = self.result(self._files.read(name), name)
        return None if found.state == "missing" else found.value

    def result(self, future: Any, name: str) -> Any:
        """The result of a read; errors, of which TensorStore has one type, as those of charjax.

        Raises:
          StoreError: the file or array of this name is damaged.
          HostError: it cannot be read.
        """
        try:
            with as_os_errors():
                return future.result()
        except (ValueError, OSError) as error:
            message = first_line(error)
            ignores_ranges = is_address(self.path) and "Requested byte range" in message
            if message.startswith(HOST_ERRORS) or ignores_ranges or isinstance(error, OSError):
                raise HostError(
                    f"{self.path}: {name}: cannot be read ({message[:300]}); check rights, the "
                    "network, and that the server answers requests for ranges"
                ) from error
            raise self._damaged(name, message) from error

    def _damaged(self, name: str, how: str) -> StoreError:
        remedy = "bring back a copy, or pack the text again into another folder"
        if name == INDEX:
            remedy += "; if `charjax pack` did not write it, rename it"
        return StoreError(f"{self.path}: {name}: damaged ({how[:200]}); {remedy}")
