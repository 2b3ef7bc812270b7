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
from charjax.errors import HostError

# In the names of folders that an interrupted save leaves.
UNFINISHED = ".orbax-checkpoint-tmp"
_RECORD = Path("meta", "record.json")
_MAX_RECORD_BYTES = 64 * 2**20
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
          OSError: the disk is full or cannot be written to.
        """
        stored = {
            name: leaf if _is_global(leaf) else arrays[name]
            for name, leaf in leaves.items()
            if arrays[name].size  # Orbax rejects an empty array; its record is enough
        }
        items = {"meta": ocp.args.JsonSave(to_json(record))}
        if stored:  # Orbax rejects an empty tree, too
            items["state"] = ocp.args.PyTreeSave(stored)
        with _orbax_silenced(), _as_os_errors():
            self._orbax.save(path, args=ocp.args.Composite(**items))
        for written in (path.parent, path, *path.rglob("*")):  # Orbax does not fsync
            descriptor = os.open(written, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def read_record(self, path: Path) -> Record:
        """The record of a checkpoint.

        Raises:
          DamagedError: it differs from its digest or cannot be read.
        """
        file = path / _RECORD
        with _as_damaged_errors("record: "):
            if file.stat().st_size > _MAX_RECORD_BYTES:
                raise DamagedError(f"larger than {_MAX_RECORD_BYTES} bytes")
            return from_json(json.loads(file.read_bytes()))

    def read_arrays(self, path: Path, leaves: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
        """Reads the arrays of these leaves and compares them with their digests.

        Raises:
          DamagedError: an array differs from its digest or cannot be read.
          HostError: together they are larger than this machine's memory.
        """
        with _as_damaged_errors("arrays: "):
            size = sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in leaves.values())
        if size > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
            raise HostError(
                f"{path}: its arrays have {size} bytes, the memory of this machine {memory}; "
                "use a larger one"
            )
        with _as_damaged_errors("arrays: "):
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
                name: ocp.ArrayRestoreArgs(np.ndarray, global_shape=leaves[name].shape)
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
        return await _gather_all(map(self._read, infos, args or ()))

    async def _read(self, info: Any, args: Any) -> np.ndarray:
        [found] = await super().metadata([info])
        if found.shape != args.global_shape:
            raise DamagedError(f"{info.name} has shape {found.shape}, not {args.global_shape}")
        arrays: Sequence[np.ndarray] = await super().deserialize([info], [args])
        return arrays[0]

    async def _background_serialize(self, values: Any, infos: Any, args: Any = None) -> None:
        write, items = super()._background_serialize, zip(values, infos, args, strict=True)
        await _gather_all(write([value], [info], [arg]) for value, info, arg in items)


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
def _as_damaged_errors(where: str) -> Iterator[None]:
    """Raises every error of reading as a DamagedError; damage has no common type in Orbax.

    Not so a lack of memory or of permission, which says nothing about the file.
    """
    try:
        yield
    except DamagedError as error:
        raise DamagedError(f"{where}{error}") from error
    except MemoryError:
        raise
    except PermissionError as error:
        raise HostError(f"{where}cannot be read ({error.strerror}); check its rights") from error
    except Exception as error:
        first_line = f"{type(error).__name__} {error}".splitlines()[0]
        raise DamagedError(f"{where}cannot be read: {first_line[:200]}") from error
