"""Reads the files of one checkpoint with TensorStore; imports neither JAX nor Orbax.

TensorStore does not notice a flipped bit, so every array is compared with its digest.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from charjax.checkpoint.record import DamagedError, Leaf, Record, from_json
from charjax.errors import HostError, InputError
from charjax.runtime.files import as_os_errors, read_regular
from charjax.runtime.paths import kvstore_folder

# Part of the name of a folder while a save or a deletion is not finished.
UNFINISHED = ".orbax-checkpoint-tmp"
RECORD = Path("meta", "record.json")
_MAX_RECORD_BYTES = 64 * 2**20  # older versions saved every loss: half a million take 10 MiB
_MAX_RECORD_VALUES = 2 * 10**6
_INDEX_CACHE_BYTES = 100 * 2**20  # for the nodes of OCDBT's B-tree
_MAX_METADATA_BYTES = 4 * 2**20  # of a file of OCDBT's metadata, which has 250 bytes per array
# Folders without that limit: OCDBT's data, and the record, which has a limit of its own.
_UNLIMITED_FOLDERS = ("d", "meta")
_PARTS = ("_CHECKPOINT_METADATA", "meta", "state")


def read_record(path: Path) -> Record:
    """The record of a checkpoint.

    Raises:
      DamagedError: the record differs from its digest or cannot be read.
    """
    with _as_damaged_errors(path, "record"):
        data = read_regular(path / RECORD, _MAX_RECORD_BYTES + 1)
        check_size(data)
        return from_json(json.loads(data.decode("ascii")))


def read_arrays(path: Path, leaves: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
    """Reads arrays by path and compares them with their digests.

    Raises:
      DamagedError: an array differs from its digest or cannot be read.
      HostError: the arrays together are larger than this machine's memory.
    """
    with _as_damaged_errors(path, "arrays"), as_os_errors():
        _check_files(path)
        arrays = _read(path, leaves)
        for name, leaf in leaves.items():
            if Leaf.of(arrays[name]) != leaf:
                raise DamagedError(f"{name} differs from its digest")
    return arrays


def _read(path: Path, leaves: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
    """Reads arrays without comparing digests. Checks their shapes before it allocates them."""
    arrays = {
        name: np.empty(leaf.shape, leaf.dtype) for name, leaf in leaves.items() if 0 in leaf.shape
    }
    stored = {name: leaf for name, leaf in leaves.items() if name not in arrays}
    context = ts.Context({"cache_pool": {"total_bytes_limit": _INDEX_CACHE_BYTES}})
    opened = [ts.open(_spec(path, name), open=True, read=True, context=context) for name in stored]
    handles = [future.result() for future in opened]
    for handle, (name, leaf) in zip(handles, stored.items(), strict=True):
        _check_shape(name, handle, leaf)
    _check_memory(sum(math.prod(h.shape) * h.dtype.numpy_dtype.itemsize for h in handles))
    futures = [handle.read(order="C") for handle in handles]
    return arrays | {name: future.result() for name, future in zip(stored, futures, strict=True)}


def _spec(path: Path, name: str) -> dict[str, Any]:
    """The TensorStore spec of an array in a checkpoint that Orbax wrote."""
    folder = {"driver": "file", "path": kvstore_folder(path / "state")}
    return {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": folder, "path": name},
        "recheck_cached_data": False,
    }


def _check_shape(name: str, handle: ts.TensorStore, leaf: Leaf) -> None:
    """Raises DamagedError if the shape or dtype is not the recorded one, or a chunk is larger."""
    stored = Leaf(tuple(handle.shape), handle.dtype.name, "")
    if stored[:2] != leaf[:2]:
        raise DamagedError(f"{name} is {stored}, not {leaf}")
    chunks = handle.chunk_layout.read_chunk.shape or ()  # None for a scalar
    if any(chunk is None or chunk > size for chunk, size in zip(chunks, leaf.shape, strict=True)):
        raise DamagedError(f"{name} is {stored} in chunks of {[*chunks]}")


def check_size(data: bytes) -> None:
    """Raises DamagedError for JSON that would take too much memory."""
    if len(data) > _MAX_RECORD_BYTES:
        raise DamagedError(f"larger than {_MAX_RECORD_BYTES} bytes")
    if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_RECORD_VALUES:
        raise DamagedError(f"made of more than {_MAX_RECORD_VALUES} values")


def _check_memory(size: int) -> None:
    if not hasattr(os, "sysconf"):
        return  # on Windows: there the allocation itself fails
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise HostError(
            f"take {size} bytes, and this machine has {memory} of memory; use a larger machine"
        )


def _check_files(folder: Path) -> None:
    """Checks the files of a checkpoint before TensorStore opens them.

    Raises:
      DamagedError: one is a link or a pipe, or a file of metadata is larger than it can be.
    """
    for path in folder.rglob("*"):  # follows no link
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError(f"{path.name} is not a regular file")
        is_limited = path.parent.name not in _UNLIMITED_FOLDERS
        if is_limited and status.st_size > _MAX_METADATA_BYTES:
            raise DamagedError(f"{path.name} is larger than {_MAX_METADATA_BYTES} bytes")


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint, even a damaged one: has any of a checkpoint's files."""
    return any((path / part).exists() for part in _PARTS)


@contextlib.contextmanager
def _as_damaged_errors(path: Path, part: str) -> Iterator[None]:
    """Turns errors of reading into DamagedErrors; TensorStore has no error type for damage.

    A lack of memory or of permission is not damage, so these errors stay what they are.
    """
    try:
        yield
    except (DamagedError, InputError) as error:
        raise DamagedError(f"{part}: {error}") from error
    except HostError as error:
        raise HostError(f"{path}: {part}: {error}") from error
    except MemoryError:
        raise
    except PermissionError as error:
        raise HostError(
            f"{path}: {part}: cannot be read ({error.strerror}); check its rights"
        ) from error
    except Exception as error:
        first_line = f"{type(error).__name__} {error}".splitlines()[0]
        raise DamagedError(f"{part}: cannot be read: {first_line[:200]}") from error
