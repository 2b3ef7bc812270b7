"""A packed text: a folder of zarr arrays of tokens, read through TensorStore as if it were one.

`charjax.data.pack` writes it. A shard is the part of the text that one process packs at a time:
its tokens, its documents' starts, and a record with its alphabet and their digests. `store.json`
lists the shards, with the digest of each record; `charjax.data.store_index` has both.
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

from charjax.data.reading import ReadingRules
from charjax.data.store_index import (
    INDEX,
    PLAN,
    ShardRecord,
    array_name,
    parse_index,
    parse_record,
    record_name,
)
from charjax.errors import HostError, InputError, StoreError
from charjax.runtime.display import ProgressFn, no_progress
from charjax.runtime.files import as_os_errors
from charjax.runtime.paths import is_address, kvstore_folder

CHUNK = 1 << 14  # tokens compressed together: the least that is read
FILE_TOKENS = 1 << 24  # tokens in a file
LAYOUT = "zarr.json"  # TensorStore's description of an array, which reading does not need
# How TensorStore's messages begin where the machine or the network is to blame.
HOST_ERRORS = (
    "ABORTED",  # all attempts to reach a server failed
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
)
# Of `few_retries`: about 20 s. TensorStore's own take minutes.
_RETRIES = {"max_retries": 4}
_CRC = {"name": "crc32c"}
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


def is_store(path: str) -> bool:
    """Whether a path is an address, or a folder that holds a packed text, perhaps unfinished."""
    folder = Path(os.path.expandvars(os.path.expanduser(path)))
    return is_address(path) or any((folder / name).is_file() for name in (INDEX, PLAN))


def few_retries() -> ts.Context:
    """The settings for a first look at an address, which nobody may serve."""
    retries = [f"{server}_request_retries" for server in ("http", "gcs", "s3")]
    return ts.Context(dict.fromkeys(retries, _RETRIES))


def open_files(path: str, context: ts.Context | None = None) -> ts.KvStore:
    """The files of a local folder or of an address, by their names.

    Args:
      path: the folder or the address.
      context: the settings of TensorStore; None for its own.

    Raises:
      InputError: TensorStore cannot read such an address.
    """
    if not is_address(path):
        return ts.KvStore.open({"driver": "file", "path": kvstore_folder(path)}).result()
    try:
        return ts.KvStore.open(f"{path.rstrip('/')}/", context=context).result()
    except ValueError as error:
        raise InputError(
            f"{path}: cannot be read ({first_line(error)}); give a folder, or an address such as "
            "gs://bucket/folder, s3://bucket/folder or http://host/folder"
        ) from error


def write_file(files: ts.KvStore, name: str, content: bytes) -> None:
    """Writes a file atomically."""
    files.write(name, content).result()


def array_spec(files: ts.KvStore, name: str, dtype: str, size: int) -> dict[str, Any]:
    """The TensorStore spec of a one-dimensional array: zstd, with a crc32c for every chunk."""
    codecs = [
        _BYTES,
        {"name": "zstd", "configuration": {"level": 1, "checksum": False}},
        _CRC,
    ]
    sharding = {
        "chunk_shape": [CHUNK],
        "codecs": codecs,
        "index_codecs": [_BYTES, _CRC],
        "index_location": "end",
    }
    return {
        "driver": "zarr3",
        "kvstore": (files / f"{name}/").spec().to_json(),
        "metadata": {
            "shape": [size],
            "data_type": dtype,
            "fill_value": 0,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [FILE_TOKENS]},
            },
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        },
        # Otherwise a lost file would read as zeros, and a part of zeros would have no file.
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
        "recheck_cached_data": False,
        "recheck_cached_metadata": False,
    }


class TextStore:
    """A packed text, opened for reading."""

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
            self.index = parse_index(data)
        except InputError as error:
            raise self._damaged(INDEX, str(error)) from error
        self._files = open_files(path)
        self.shards = self.index.shards
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
        return parse_record(data)

    def tokens(self, number: int, record: ShardRecord) -> ts.TensorStore:
        """The array of a shard's tokens."""
        return self._array(array_name("tokens", number), record.text.dtype, record.text.tokens)

    def starts(self, number: int) -> ts.TensorStore:
        """The array of the positions of a shard's documents in it."""
        return self._array(array_name("starts", number), "int64", self.shards[number].documents)

    def hashes(self, number: int) -> ts.TensorStore:
        """The array of the hashes of a shard's documents."""
        return self._array(array_name("hashes", number), "uint32", self.shards[number].documents)

    def document_starts(self) -> np.ndarray:
        """The positions in the text of all documents' first tokens, int64."""
        if self.rules.documents.mode == "none":
            return np.zeros(1, np.int64)
        parts, begin = [], 0
        for number, shard in enumerate(self.shards):
            if shard.documents:
                with self.as_store_errors(array_name("starts", number)):
                    parts.append(self.starts(number).read().result() + begin)
            begin += shard.tokens
        return np.concatenate(parts) if parts else np.zeros(1, np.int64)

    def document_hashes(self) -> np.ndarray:
        """The hashes of all documents, see `charjax.data.document_hash`.

        Raises:
          InputError: an older version packed the text, without them.
        """
        parts = [np.zeros(0, np.uint32)]
        for number, shard in enumerate(self.shards):
            if shard.documents:
                if not self.record(number).digests.hashes_sha256:
                    raise InputError(
                        f"{self.path}: was packed by an older version, without the hashes that "
                        "config.data.split_by=hash needs; pack the text again"
                    )
                with self.as_store_errors(array_name("hashes", number)):
                    parts.append(self.hashes(number).read().result())
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
        record = self.record(number)
        text, digests = record
        arrays = {"tokens": (self.tokens(number, record), digests.sha256)}
        if text.documents:
            arrays["starts"] = (self.starts(number), digests.starts_sha256)
        if digests.hashes_sha256:
            arrays["hashes"] = (self.hashes(number), digests.hashes_sha256)
        layout = hashlib.sha256()
        for kind, (array, sha256) in arrays.items():
            folder = array_name(kind, number)
            layout.update(self._read_file(f"{folder}/{LAYOUT}") or b"")
            digest = hashlib.sha256()
            with self.as_store_errors(folder):
                for begin in range(0, array.shape[0], FILE_TOKENS):
                    end = min(array.shape[0], begin + FILE_TOKENS)
                    digest.update(array[begin:end].read().result().data)
            if digest.hexdigest() != sha256:
                raise self._damaged(folder, "differs from its digest")
        if layout.hexdigest() != digests.layout_sha256:
            raise self._damaged(f"{number:05}/{LAYOUT}", "differs from its digest")

    def _array(self, name: str, dtype: str, size: int) -> ts.TensorStore:
        spec = array_spec(self._files, name, dtype, size)
        opened = ts.open(spec, open=True, assume_metadata=True, read=True, context=self._context)
        return opened.result()

    def _read_file(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        with self.as_store_errors(name):
            found = self._files.read(name).result()
        return None if found.state == "missing" else found.value

    @contextlib.contextmanager
    def as_store_errors(self, name: str) -> Iterator[None]:
        """Turns errors of TensorStore, which has one type for all, into those of charjax."""
        try:
            with as_os_errors():
                yield
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
        return StoreError(
            f"{self.path}: {name}: damaged ({how[:200]}); bring back a copy, or delete the store "
            "and pack the text again"
        )


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error) or type(error).__name__).splitlines()[0]
