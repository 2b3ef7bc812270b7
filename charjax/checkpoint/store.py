"""One checkpoint on the disk. The only module that knows Orbax.

Orbax brings the array format, the several processes and the atomic rename of a
finished checkpoint. It restores a flipped bit without a word, though, so every
array is compared with its record before anyone sees it.

Arrays lie flat, as {"params/dense/kernel": array}: any of them can be read on
its own, and no class of optax or flax is named in the files.
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

from charjax.checkpoint.record import DamagedError, Leaf, Record, describe, seal, unseal
from charjax.errors import HostError

# In the name of what a save that was cut short leaves behind.
UNFINISHED = ".orbax-checkpoint-tmp"
_RECORD = Path("meta", "record.json")
_MAX_RECORD_BYTES = 64 * 2**20
_PARTS = ("_CHECKPOINT_METADATA", "meta", "state")

_T = TypeVar("_T")


class Store:
    """Writes and reads checkpoints, each a folder."""

    def __init__(self) -> None:
        handlers = ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, _PatientHandler(deepcopy_host_arrays=False)),
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
        """Writes a checkpoint, whole or not at all, and has it on the disk on return.

        Args:
          path: its folder, not there yet.
          leaves: the arrays by path, on any devices.
          arrays: `to_host(leaves)`.
          record: what describes them.

        Raises:
          OSError: the disk refused.
        """
        stored = {
            name: leaf if _is_global(leaf) else arrays[name]
            for name, leaf in leaves.items()
            if arrays[name].size  # Orbax refuses an empty array; its record says it all
        }
        items = {"meta": ocp.args.JsonSave(seal(record))}
        if stored:  # Orbax refuses an empty tree, too
            items["state"] = ocp.args.PyTreeSave(stored)
        with _quiet(), _os_errors():
            self._orbax.save(path, args=ocp.args.Composite(**items))
        for written in (path.parent, path, *path.rglob("*")):  # Orbax leaves this to the system
            descriptor = os.open(written, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def read_record(self, path: Path) -> Record:
        """The record of a checkpoint.

        Raises:
          DamagedError: it cannot be trusted.
        """
        file = path / _RECORD
        with _damage("record: "):
            if file.stat().st_size > _MAX_RECORD_BYTES:
                raise DamagedError(f"larger than {_MAX_RECORD_BYTES} bytes")
            return unseal(json.loads(file.read_bytes()))

    def read_arrays(self, path: Path, leaves: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
        """These arrays of a checkpoint, verified.

        Raises:
          DamagedError: one of them is not what its record says.
          HostError: together they are larger than this machine's memory.
        """
        with _damage("arrays: "):
            size = sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in leaves.values())
        if size > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
            raise HostError(
                f"{path}: its arrays have {size} bytes, the memory of this machine {memory}; "
                "use a larger one"
            )
        with _damage("arrays: "):
            arrays = self._read(path, leaves)
            for name, leaf in leaves.items():
                if describe(arrays[name]) != leaf:
                    raise DamagedError(f"{name} differs from its digest")
        return arrays

    def _read(self, path: Path, leaves: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
        """These arrays as they are. Allocates nothing of a shape that is not on record."""
        empty = {
            name: np.empty(leaf.shape, jnp.dtype(leaf.dtype))
            for name, leaf in leaves.items()
            if 0 in leaf.shape
        }
        stored = [name for name in leaves if name not in empty]
        if not stored:
            return empty
        wanted = ocp.args.PyTreeRestore(
            item=dict.fromkeys(stored, 0),  # only its structure counts
            restore_args={
                name: ocp.ArrayRestoreArgs(np.ndarray, global_shape=leaves[name].shape)
                for name in stored
            },
            partial_restore=True,
        )
        with _quiet():
            restored = self._orbax.restore(path, args=ocp.args.Composite(state=wanted))
        return {**empty, **restored["state"]}


class _PatientHandler(ocp.type_handlers.NumpyHandler):
    """Reads only arrays of the shape that is asked for, and fails when all have come to an end.

    Orbax's own goes at the first failure, and each of the others, finding that nobody
    waits for it any longer, writes a traceback to stderr.
    """

    async def deserialize(
        self, infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[np.ndarray]:
        return await _all_ended(map(self._read, infos, args or ()))

    async def _read(self, info: Any, args: Any) -> np.ndarray:
        [found] = await super().metadata([info])
        if found.shape != args.global_shape:
            raise DamagedError(f"{info.name} has shape {found.shape}, not {args.global_shape}")
        arrays: Sequence[np.ndarray] = await super().deserialize([info], [args])
        return arrays[0]

    async def _background_serialize(self, values: Any, infos: Any, args: Any = None) -> None:
        write, each = super()._background_serialize, zip(values, infos, args, strict=True)
        await _all_ended(write([value], [info], [arg]) for value, info, arg in each)


async def _all_ended(calls: Iterable[Awaitable[_T]]) -> list[_T]:
    """What the calls return, or the first of their errors, once none is under way."""
    results: list[_T] = []
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results


def is_checkpoint(path: Path) -> bool:
    """Whether a folder has, or has left of it, the layout of a checkpoint."""
    return any((path / part).exists() for part in _PARTS)


def to_host(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The whole of every leaf on this process, all transfers under way at once."""
    local = {path: _gather(leaf) if _is_global(leaf) else leaf for path, leaf in leaves.items()}
    return {path: np.asarray(leaf) for path, leaf in jax.device_get(local).items()}


def _is_global(leaf: Any) -> bool:
    """Whether other processes hold a part of this array."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _gather(leaf: jax.Array) -> Any:
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    return multihost_utils.process_allgather(leaf, tiled=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Orbax's log: what matters in it reaches the user as an error or a report."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Turns an array store's ValueError about the disk into the OSError that it is."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


@contextlib.contextmanager
def _damage(where: str) -> Iterator[None]:
    """Turns whatever goes wrong while reading into a DamagedError: it has no narrower type.

    But for what the machine refuses, which says nothing of the file.
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
