"""Writes a checkpoint to disk. The only module that imports Orbax.

Orbax provides the array format, saves by several processes, and the atomic rename of a finished
checkpoint. Arrays are saved as a flat {"params/dense/kernel": array}, so that each can be read
alone and no class of optax or flax is named in the files. `charjax.checkpoint.files` reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from charjax.checkpoint.files import RECORD, UNFINISHED, check_size
from charjax.checkpoint.record import DamagedError, Record, to_json
from charjax.errors import HostError
from charjax.runtime.files import as_os_errors, write_atomically

# Orbax numbers the saves of a process: at a time, only one thread may save.
_one_save = threading.Lock()


class Store:
    """Writes checkpoints, one folder each."""

    def __init__(self) -> None:
        handlers = ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, _NumpyHandler(deepcopy_host_arrays=False)),
            (jax.Array, ocp.type_handlers.ArrayHandler()),
        )
        self._orbax = ocp.Checkpointer(
            _ItemsHandler(
                state=ocp.PyTreeCheckpointHandler(type_handler_registry=handlers),
                meta=ocp.JsonCheckpointHandler(filename=RECORD.name),
            )
        )

    def close(self) -> None:
        """Stops Orbax's threads."""
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
          path: the checkpoint's folder, which must not exist.
          leaves: {path: array}, on any devices.
          arrays: `to_host(leaves)`.
          record: the record of these arrays.

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
        with _one_save, _orbax_silenced(), as_os_errors():
            self._orbax.save(path, args=_Items(**items))
        for written in (path.parent, path, *path.rglob("*")):  # Orbax does not fsync
            _sync(written)

    def write_record(self, path: Path, record: Record) -> None:
        """Replaces the record of a checkpoint atomically; the arrays stay.

        Raises:
          HostError, OSError: see `write`.
        """
        unfinished = path.with_name(f"{path.name}{UNFINISHED}.record")
        unfinished.unlink(missing_ok=True)
        write_atomically(path / RECORD, _encode_record(path, record), unfinished=unfinished)
        _sync((path / RECORD).parent)


class _ItemsHandler(ocp.CompositeCheckpointHandler):
    """Awaits the arrays and the record before raising.

    Orbax raises at the first error, while its threads write the rest: beside the deletion of the
    unfinished files, and with a traceback for every further error.
    """

    async def async_save(self, directory: Any, args: Any) -> list[Any]:
        futures = await super().async_save(directory, args)
        await _gather_all(asyncio.to_thread(future.result) for future in futures or ())
        return []


@ocp.args.register_with_handler(_ItemsHandler, for_save=True, for_restore=True)
class _Items(ocp.args.Composite):
    """What an `_ItemsHandler` saves."""


class _NumpyHandler(ocp.type_handlers.NumpyHandler):
    """Awaits every write before raising.

    Orbax's handler raises at the first error, and asyncio then prints a traceback for every other
    error, which nobody awaits.
    """

    async def _background_serialize(self, values: Any, infos: Any, args: Any = None) -> None:
        write, items = super()._background_serialize, zip(values, infos, args, strict=True)
        await _gather_all(write([value], [info], [arg]) for value, info, arg in items)


def _encode_record(path: Path, record: Record) -> bytes:
    """The record as JSON for `read_record`.

    Raises:
      HostError: it is larger than `read_record` accepts.
    """
    data = json.dumps(to_json(record)).encode()
    try:
        check_size(data)
    except DamagedError as error:
        raise HostError(f"{path}: cannot be saved: its record is {error}") from None
    return data


def _sync(path: Path) -> None:
    """Calls fsync on a file or, except on Windows, a folder."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


async def _gather_all(calls: Iterable[Awaitable[Any]]) -> None:
    """Awaits all calls, then raises the first error."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def to_host(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Copies leaves to the host, whole, in parallel. All processes must call it."""
    local = {
        path: _gather_leaf(leaf) if _is_global(leaf) else leaf for path, leaf in leaves.items()
    }
    arrays = {path: np.asarray(leaf) for path, leaf in jax.device_get(local).items()}
    # The name of a dtype, by which it is restored, does not say the order of its bytes.
    return {path: a.astype(a.dtype.newbyteorder("="), copy=False) for path, a in arrays.items()}


def _is_global(leaf: Any) -> bool:
    """Whether parts of an array are on devices of other processes."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _gather_leaf(leaf: jax.Array) -> Any:
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    return multihost_utils.process_allgather(leaf, tiled=True)


@contextlib.contextmanager
def _orbax_silenced() -> Iterator[None]:
    """Silences Orbax's log; charjax itself raises or logs what a user must know."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
