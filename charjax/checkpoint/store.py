"""One checkpoint on disk. The only module that imports Orbax.

Orbax provides the array format, saves by several processes, and the atomic rename of a finished
checkpoint. It restores flipped bits without an error, so every array is compared with its digest
here. Arrays are saved as a flat {"params/dense/kernel": array}: each can be read alone, and the
files name no class of optax or flax.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import operator
import os
import re
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from charjax.checkpoint.record import DamagedError, Leaf, Record, from_json, to_json
from charjax.errors import HostError, InputError
from charjax.runtime.files import open_regular, read_regular

# In the names of folders that an interrupted save leaves.
UNFINISHED = ".orbax-checkpoint-tmp"
_RECORD = Path("meta", "record.json")
_MAX_RECORD_BYTES = 64 * 2**20  # a record of half a million losses, which old ones have, is 10
_MAX_RECORD_VALUES = 2 * 10**6
_MAX_METADATA_BYTES = 4 * 2**20  # of the array store: 250 an array
_LARGE = ("d", "meta")  # folders: the array store's data, and the record, which has its own limit
_PARTS = ("_CHECKPOINT_METADATA", "meta", "state")

_T = TypeVar("_T")


class Store:
    """Writes and reads checkpoints, each a folder."""

    def __init__(self) -> None:
        handlers = ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, _NumpyHandler(deepcopy_host_arrays=False)),
            (jax.Array, ocp.type_handlers.ArrayHandler()),
        )
        self._orbax = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.PyTreeCheckpointHandler(type_handler_registry=handlers),
                meta=ocp.JsonCheckpointHandler(filename=_RECORD.name),
            )
        )

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._orbax.close()

    def write(
        self,
        path: Path,
        leaves: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        record: Record,
    ) -> None:
        """Writes a checkpoint atomically; it is on disk when this returns.

        Args:
          path: its folder, which must not exist.
          leaves: {path: array}, on any devices.
          arrays: `to_host(leaves)`.
          record: their record.

        Raises:
          HostError: the record is too large.
          OSError: the disk is full or cannot be written to.
        """
        _encode_record(path, record)
        stored = {
            name: leaf if _is_global(leaf) else arrays[name]
            for name, leaf in leaves.items()
            if arrays[name].size  # Orbax rejects an empty array; the record has its shape
        }
        items = {"meta": ocp.args.JsonSave(to_json(record))}
        if stored:  # Orbax rejects an empty tree, too
            items["state"] = ocp.args.PyTreeSave(stored)
        with _orbax_silenced(), _as_os_errors():
            self._orbax.save(path, args=ocp.args.Composite(**items))
        for written in (path.parent, path, *path.rglob("*")):  # Orbax does not fsync
            _sync(written)

    def write_record(self, path: Path, record: Record) -> None:
        """Replaces the record of a checkpoint atomically; the arrays stay.

        Raises:
          HostError, OSError: see `write`.
        """
        unfinished = path.with_name(f"{path.name}{UNFINISHED}.record")
        unfinished.unlink(missing_ok=True)
        descriptor = open_regular(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_encode_record(path, record))
            file.flush()
            os.fsync(descriptor)
        unfinished.replace(path / _RECORD)
        _sync((path / _RECORD).parent)

    def read_record(self, path: Path) -> Record:
        """The record of a checkpoint.

        Raises:
          DamagedError: it differs from its digest or cannot be read.
        """
        with _as_damaged_errors(path, "record"):
            return from_json(_read_json(path / _RECORD))

    def read_arrays(self, path: Path, leaves: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
        """Reads the arrays of these leaves and compares them with their digests.

        Raises:
          DamagedError: an array differs from its digest or cannot be read.
          HostError: together they are larger than this machine's memory.
        """
        with _as_damaged_errors(path, "arrays"):
            _check_files(path)
            arrays = self._read(path, leaves)
            for name, leaf in leaves.items():
                if Leaf.of(arrays[name]) != leaf:
                    raise DamagedError(f"{name} differs from its digest")
        return arrays

    def _read(self, path: Path, leaves: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
        """Reads arrays without comparing digests. Allocates only shapes that are recorded."""
        empty = {
            name: np.empty(leaf.shape, jnp.dtype(leaf.dtype))
            for name, leaf in leaves.items()
            if 0 in leaf.shape
        }
        stored = [name for name in leaves if name not in empty]
        if not stored:
            return empty
        wanted = ocp.args.PyTreeRestore(
            item=dict.fromkeys(stored, 0),  # Orbax uses its structure alone
            restore_args={
                name: ocp.ArrayRestoreArgs(
                    np.ndarray, global_shape=leaves[name].shape, dtype=leaves[name].dtype
                )
                for name in stored
            },
            partial_restore=True,
        )
        with _orbax_silenced():
            restored = self._orbax.restore(path, args=ocp.args.Composite(state=wanted))
        return {**empty, **restored["state"]}


class _NumpyHandler(ocp.type_handlers.NumpyHandler):
    """Checks shapes before allocating and awaits every read and write before raising.

    Orbax's handler raises at the first error, and asyncio then prints a traceback for every other
    error, which nobody awaits.
    """

    async def deserialize(
        self, infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[np.ndarray]:
        args = args or ()
        await _gather_all(map(self._check, infos, args))
        _check_memory(sum(math.prod(a.global_shape) * jnp.dtype(a.dtype).itemsize for a in args))
        return await _gather_all(map(self._read, infos))

    async def _check(self, info: Any, args: Any) -> None:
        """Raises DamagedError where an array is not as recorded, or has larger chunks than it."""
        [found] = await super().metadata([info])
        stored, wanted = Leaf.like(found), Leaf(args.global_shape, args.dtype, "")
        if stored != wanted:
            raise DamagedError(f"{info.name} is {stored}, not {wanted}")
        for chunks in (found.storage.chunk_shape, found.storage.zarr_metadata.chunk_shape):
            if len(chunks) != len(found.shape) or any(map(operator.gt, chunks, found.shape)):
                raise DamagedError(f"{info.name} is {stored} in chunks of {[*chunks]}")

    async def _read(self, info: Any) -> np.ndarray:
        arrays: Sequence[np.ndarray] = await super().deserialize([info])
        return arrays[0]

    async def _background_serialize(self, values: Any, infos: Any, args: Any = None) -> None:
        write, items = super()._background_serialize, zip(values, infos, args, strict=True)
        await _gather_all(write([value], [info], [arg]) for value, info, arg in items)


def _encode_record(path: Path, record: Record) -> bytes:
    """The record as JSON, which `_read_json` reads.

    Raises:
      HostError: it is too large to be read again.
    """
    data = json.dumps(to_json(record)).encode()
    try:
        _check_size(data)
    except DamagedError as error:
        raise HostError(f"{path}: cannot be saved: its record is {error}") from None
    return data


def _sync(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _read_json(file: Path) -> Any:
    """The JSON of a file, if its size and its number of values are those of a record at most."""
    data = read_regular(file, _MAX_RECORD_BYTES + 1)
    _check_size(data)
    return json.loads(data.decode("ascii"))


def _check_size(data: bytes) -> None:
    """Raises DamagedError for JSON that would take too much memory."""
    if len(data) > _MAX_RECORD_BYTES:
        raise DamagedError(f"larger than {_MAX_RECORD_BYTES} bytes")
    if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_RECORD_VALUES:
        raise DamagedError(f"made of more than {_MAX_RECORD_VALUES} values")


def _check_memory(size: int) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise HostError(
            f"have {size} bytes, the memory of this machine {memory}; use a larger machine"
        )


def _check_files(folder: Path) -> None:
    """Checks what Orbax and TensorStore are going to open, before they do.

    Raises:
      DamagedError: a link, a pipe or the like is among it, or metadata are larger than any are.
    """
    with os.scandir(folder) as scanned:
        entries = list(scanned)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _check_files(Path(entry))
        elif not entry.is_file(follow_symlinks=False):
            raise DamagedError(f"{entry.name} is not a regular file")
        elif folder.name not in _LARGE and entry.stat().st_size > _MAX_METADATA_BYTES:
            raise DamagedError(f"{entry.name} is larger than {_MAX_METADATA_BYTES} bytes")


async def _gather_all(calls: Iterable[Awaitable[_T]]) -> list[_T]:
    """Awaits all calls, then returns their results or raises the first of their errors."""
    results: list[_T] = []
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint, complete or damaged: it has one of its parts."""
    return any((path / part).exists() for part in _PARTS)


def to_host(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every leaf in full as a numpy array, transferred in parallel. A collective."""
    local = {
        path: _gather_leaf(leaf) if _is_global(leaf) else leaf for path, leaf in leaves.items()
    }
    return {path: np.asarray(leaf) for path, leaf in jax.device_get(local).items()}


def _is_global(leaf: Any) -> bool:
    """Whether an array is on devices of other processes, too."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _gather_leaf(leaf: jax.Array) -> Any:
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    return multihost_utils.process_allgather(leaf, tiled=True)


@contextlib.contextmanager
def _orbax_silenced() -> Iterator[None]:
    """Silences Orbax's log: what a user must know is raised or logged by charjax."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Raises TensorStore's ValueErrors about the disk as OSErrors."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


@contextlib.contextmanager
def _as_damaged_errors(path: Path, part: str) -> Iterator[None]:
    """Raises every error of reading as a DamagedError; damage has no common type in Orbax.

    Not so a lack of memory or of permission, which says nothing about the file.
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
