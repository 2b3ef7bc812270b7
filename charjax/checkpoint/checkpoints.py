"""Checkpoint manager of a training run: saves and restores steps, deletes old ones.

Orbax's CheckpointManager does not fit: it treats every folder named by a number as a step, refuses
to save a step below the newest, and does not fall back on an older step if the newest is damaged.
"""

from __future__ import annotations

import contextlib
import math
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from charjax.checkpoint.reader import CheckpointReader, Which
from charjax.checkpoint.record import DamagedError, Leaf, Record
from charjax.checkpoint.store import Store, to_host
from charjax.errors import DivergedError, HostError, InputError
from charjax.runtime import distributed
from charjax.schema import check_integer
from charjax.types import PyTree

_MAX_STEP = 2**63 - 1
_MUST_BE_FINITE = ("params", "ema")  # subtrees that are never saved with a NaN or an infinity


@dataclass(frozen=True)
class Restored(Record):
    """A verified checkpoint.

    Attributes:
      state: numpy arrays in the structure of the `like` that `Checkpoints.restore` was given.
    """

    state: PyTree


class Checkpoints(CheckpointReader):
    """The checkpoints in a folder. Only one process group may write to it: see `Workdir.lock`."""

    def __init__(self, directory: str | Path, *, keep: int = 1) -> None:
        """Does not touch the disk.

        Args:
          directory: the folder; made by the first `save`, but not those above it.
          keep: how many of the newest steps not to delete, besides the one of lowest val_loss.

        Raises:
          InputError: `keep` is no integer, or below 1.
        """
        check_integer("keep", keep, low=1)
        super().__init__(Path(directory))
        self._keep = keep
        self._store = Store()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        self._store.close()

    def save(
        self, step: int, state: PyTree, meta: Mapping[str, Any], *, val_loss: float | None
    ) -> None:
        """Saves a step atomically, then deletes old steps. All processes must call it.

        A step that was saved before and verifies is left as it is; a damaged one is renamed.

        Args:
          step: number of training steps done; an integer of Python, numpy or JAX.
          state: any pytree of numbers, or jax or numpy arrays of them, on any devices.
          meta: JSON values.
          val_loss: in nats per character. A step without a finite one is never the best.

        Raises:
          InputError: the step is no integer, or below 0; its folder has other files; or an array is
            not of numbers.
          DivergedError: a parameter is not finite; nothing was saved.
          HostError: the disk is full or cannot be written to; the other steps are unchanged.
        """
        step = check_integer("step", step, low=0, high=_MAX_STEP)
        leaves, _ = flatten(state)
        _check_numeric(leaves)
        arrays = to_host(leaves)
        _check_finite(step, arrays)
        if self._is_saved(step):
            return
        record_leaves = {path: Leaf.of(array) for path, array in arrays.items()}
        record = Record(step, val_loss, dict(meta), record_leaves)
        with self._as_host_errors(step, sum(array.nbytes for array in arrays.values())):
            if distributed.is_primary():
                self._folders.prepare(step)
            self._store.write(self._folders.path(step), leaves, arrays, record)
            self._damaged.discard(step)
            self._prune(step)

    def update(self, step: int, meta: Mapping[str, Any], *, val_loss: float | None) -> bool:
        """Replaces the metadata and val_loss of a saved step, atomically; its arrays stay.

        All processes must call it.

        Args:
          step: a step that was saved.
          meta: as for `save`.
          val_loss: as for `save`.

        Returns:
          False if the record of the step is damaged, so that nothing was replaced.

        Raises:
          InputError: the step is no integer, or below 0.
          HostError: the disk is full or cannot be written to; nothing has changed.
        """
        step, is_damaged = check_integer("step", step, low=0, high=_MAX_STEP), False
        if distributed.is_primary():
            try:
                record = replace(self._record(step), meta=dict(meta), val_loss=val_loss)
                with self._as_host_errors(step, 0):
                    self._store.write_record(self._folders.path(step), record)
                    self._prune(step)
            except DamagedError:
                is_damaged = True
        return distributed.all_max([is_damaged]) == [0]

    def restore(self, like: PyTree, *, which: Which = "newest") -> Restored:
        """Reads and verifies a checkpoint.

        Args:
          like: a pytree of arrays or of `ShapeDtypeStruct`: structure, shapes and dtypes to
            restore. It may be a part of what was saved, such as {"params": ...}.
          which: see `read_arrays`.

        Raises:
          CheckpointError: see `read_arrays`.
        """
        leaves, structure = flatten(like)
        wanted = {path: Leaf.like(leaf) for path, leaf in leaves.items()}
        record, arrays = self.read_arrays(lambda record: wanted, which=which)
        state = jax.tree.unflatten(structure, [arrays[path] for path in wanted])
        return Restored(**vars(record), state=state)

    @contextlib.contextmanager
    def _as_host_errors(self, step: int, size: int) -> Iterator[None]:
        """Raises OSErrors of a save as HostErrors, after deleting its unfinished files.

        `size` is the number of bytes to save, for the message.
        """
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):
                self._folders.delete_unfinished()
            raise HostError(
                f"{self._folders.path(step)}: cannot be saved: {error.strerror or error} "
                f"(over {size} bytes needed, {self._folders.free_bytes()} free); "
                "free disk space or give access, then start the same command again"
            ) from error

    def _is_saved(self, step: int) -> bool:
        """Whether a step exists and verifies; process 0 checks and tells the others."""
        problem: str | None = "missing"
        if distributed.is_primary() and step in self.steps():
            problem = self._problem(step)
            if problem:
                self._warn_once(
                    f"{self._folders.path(step)}: damaged checkpoint ({problem}); saving it again, "
                    f"the damaged one becomes {self._folders.damaged_path(step).name}"
                )
        return distributed.all_max([not problem]) == [1]

    def _prune(self, saved: int) -> None:
        """Deletes old steps, except the best one, and damaged ones, which are evidence."""
        if not distributed.is_primary():
            return
        ranks = self._ranks()
        intact = [s for s, rank in ranks.items() if rank > -math.inf and s not in self._damaged]
        best = min(intact, key=ranks.__getitem__, default=saved)
        for step in set(intact) - {saved, best, *intact[: self._keep]}:
            self._folders.delete(step)


def flatten(tree: PyTree) -> tuple[dict[str, Any], Any]:
    """Flattens a pytree to paths such as `params/dense/kernel`.

    Dict keys, field names and indices are percent-encoded, so that no two paths are equal.

    Returns:
      {path: leaf} in the order of `jax.tree.leaves`, and the treedef for `jax.tree.unflatten`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(map(_encode, keys)): leaf for keys, leaf in leaves}, structure


def _check_numeric(leaves: Mapping[str, Any]) -> None:
    for path, leaf in leaves.items():
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
        if is_key or not Leaf.like(leaf).is_valid():
            raise InputError(
                f"{path}: an array of {dtype.name} cannot be saved; leave it out, or save it "
                "as numbers"
            )


def _check_finite(step: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises DivergedError where a parameter is not finite; the run adds its remedy."""
    for path, array in arrays.items():
        inexact = jnp.issubdtype(array.dtype, np.inexact)
        if path.startswith(_MUST_BE_FINITE) and inexact and not np.isfinite(array).all():
            raise DivergedError(f"{path} at step {step} is not finite and was not saved")


def _encode(key: Any) -> str:
    return urllib.parse.quote(jax.tree_util.keystr((key,), simple=True), safe="")
