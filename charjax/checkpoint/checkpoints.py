"""The checkpoints of a run: the newest ones and the best, and a fallback where one is damaged.

Not Orbax's CheckpointManager: it takes any folder with a number for a step, does not save a step
below the newest, and does not fall back on an older step.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from charjax.checkpoint.record import DamagedError, Leaf, Record, flatten
from charjax.checkpoint.steps import StepFolders
from charjax.checkpoint.store import Store, to_host
from charjax.errors import CheckpointError, DivergedError, HostError
from charjax.runtime import distributed
from charjax.types import PyTree

_logger = logging.getLogger(__name__)
_MAX_LOOKS = 100  # at a folder that a run changes
_FINITE = ("params", "ema")  # never saved with a NaN or an infinity

Which: TypeAlias = Literal["newest", "best"] | int
_T = TypeVar("_T")


class _DeletedError(Exception):
    """A checkpoint that was deleted, or saved again, while it was read."""


@dataclass(frozen=True)
class Restored(Record):
    """A verified checkpoint.

    Attributes:
      state: numpy arrays in the structure that `Checkpoints.restore` was asked for.
    """

    state: PyTree


class Checkpoints:
    """The checkpoints in a folder, which must have one writer at a time: see `Workdir.lock`."""

    def __init__(self, directory: Path, *, keep: int = 1) -> None:
        """Does not touch the disk.

        Args:
          directory: the folder; made by the first `save`.
          keep: how many of the newest steps to keep, besides the one with the lowest val_loss.
        """
        self._keep = keep
        self._warn_once = functools.cache(_logger.warning)
        self._folders = StepFolders(directory)
        self._damaged: set[int] = set()
        self._store = Store()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        self._store.close()

    def save(
        self, step: int, state: PyTree, meta: Mapping[str, Any], *, val_loss: float | None
    ) -> None:
        """Saves a step atomically, then deletes the steps that are not kept. A collective.

        A step that exists and verifies is not changed; a damaged one is renamed.

        Args:
          step: steps done.
          state: any pytree of jax or numpy arrays, on any devices.
          meta: JSON values.
          val_loss: nats per character; None or not finite: never the best.

        Raises:
          DivergedError: a parameter is not finite; nothing was saved.
          HostError: the disk is full or cannot be written to; the other steps are unchanged.
        """
        leaves, _ = flatten(state)
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
        """Replaces what was saved with the arrays of a step, atomically. A collective.

        Args:
          step: that was saved.
          meta: as for `save`.
          val_loss: as for `save`.

        Returns:
          Whether it was replaced; not where the record of the step is damaged.

        Raises:
          HostError: the disk is full or cannot be written to; nothing has changed.
        """
        is_sound = True
        if distributed.is_primary():
            try:
                record = replace(self._record(step), meta=dict(meta), val_loss=val_loss)
                with self._as_host_errors(step, 0):
                    self._store.write_record(self._folders.path(step), record)
                    self._prune(step)
            except DamagedError:
                is_sound = False
        (is_damaged,) = distributed.all_max([not is_sound])
        return not is_damaged

    def steps(self) -> list[int]:
        """The steps on disk, ascending, damaged ones included."""
        return self._folders.steps()

    def restore(self, like: PyTree, *, which: Which = "newest") -> Restored:
        """Reads and verifies a checkpoint.

        Args:
          like: arrays or `ShapeDtypeStruct`s in the structure wanted, which may be a
            part of what was saved, such as {"params": ...}.
          which: "newest", "best" (lowest val_loss) or the number of a step. Instead of a
            damaged step, the first two read the next newest or best, and log a warning.

        Raises:
          CheckpointError: there is no such step, none verifies, or a leaf of `like` was not
            saved, or has another shape or dtype.
        """
        wanted, structure = flatten(like)

        def read(step: int) -> Restored:
            record = self._record(step)
            leaves = {path: record.leaf(path, like=leaf) for path, leaf in wanted.items()}
            arrays = self._store.read_arrays(self._folders.path(step), leaves)
            state = jax.tree.unflatten(structure, [arrays[path] for path in wanted])
            return Restored(**vars(record), state=state)

        return self._find(which, read)

    def read_meta(self, *, which: Which = "newest") -> Record:
        """As `restore`, but reads and verifies only the record."""
        return self._find(which, self._record)

    def verify(self) -> list[tuple[int, str]]:
        """Reads every checkpoint: (step, what is wrong with it or ""), ascending.

        Those that a run deletes meanwhile are left out.
        """
        for _ in range(_MAX_LOOKS):
            steps = self.steps()
            problems = [(step, self._problem(step)) for step in steps]
            verdicts = [(step, problem) for step, problem in problems if problem is not None]
            if verdicts or not steps:
                return verdicts
        raise self._changes_too_fast()

    def _candidates(self, which: Which) -> list[int]:
        """The steps to try, in this order.

        Raises:
          CheckpointError: there is none, or not the one asked for.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"{self._folders.directory}: holds no checkpoint; train this run first"
            )
        if isinstance(which, int):
            if which not in steps:
                existing = ", ".join(map(str, steps))
                raise CheckpointError(
                    f"{self._folders.path(which)}: no such step; there are {existing}"
                )
            return [which]
        if which == "newest":
            return steps[::-1]
        ranks = self._ranks()
        return sorted(ranks, key=ranks.__getitem__)

    def _ranks(self) -> dict[int, float]:
        """{step: the val_loss to sort by}, from the newest step on.

        A damaged record comes first, so that it is reported. A loss that was measured on another
        text than that of the newest step does not count.
        """
        ranks: dict[int, float] = {}
        text = None
        for step in reversed(self.steps()):
            try:
                record = self._read(step, self._record)
            except (DamagedError, _DeletedError) as error:
                ranks[step] = -math.inf if isinstance(error, DamagedError) else math.inf
                continue
            text = text or record.val_text
            val_loss = record.val_loss if record.val_text == text else None
            ranks[step] = math.inf if val_loss is None else val_loss
        return ranks

    def _find(self, which: Which, read: Callable[[int], _T]) -> _T:
        """`_first_sound`, looked for again where a run deletes a step while it is read."""
        for _ in range(_MAX_LOOKS):
            with contextlib.suppress(_DeletedError):
                return self._first_sound(self._candidates(which), read)
        raise self._changes_too_fast()

    def _first_sound(self, candidates: Sequence[int], read: Callable[[int], _T]) -> _T:
        for step, following in zip(candidates, [*candidates[1:], None], strict=True):
            try:
                return self._read(step, read)
            except DamagedError as error:
                self._damaged.add(step)
                remedy = "no other to use" if following is None else f"trying step {following}"
                self._warn_once(
                    f"{self._folders.path(step)}: damaged checkpoint ({error}); {remedy}"
                )
        tried = ", ".join(map(str, candidates))
        raise CheckpointError(
            f"{self._folders.directory}: no checkpoint that verifies (tried {tried}); "
            "restore a copy of this folder, or start again in another --workdir"
        )

    def _changes_too_fast(self) -> CheckpointError:
        return CheckpointError(
            f"{self._folders.directory}: a run deletes its checkpoints faster than they can be "
            "read; try again, or have the run save less often"
        )

    def _problem(self, step: int) -> str | None:
        """What is wrong with a step; "" if it verifies, None if it was deleted meanwhile."""

        def read(step: int) -> None:
            self._store.read_arrays(self._folders.path(step), self._record(step).leaves)

        try:
            self._read(step, read)
        except DamagedError as error:
            return str(error)
        except _DeletedError:
            return None
        return ""

    def _read(self, step: int, read: Callable[[int], _T]) -> _T:
        """Calls `read`.

        Raises:
          DamagedError: the step is damaged.
          _DeletedError: it is not, but was deleted, as a run deletes its older steps.
        """
        before = self._folders.identity(step)
        try:
            return read(step)
        except DamagedError:
            if before is None or self._folders.identity(step) != before:
                raise _DeletedError from None
            raise

    def _record(self, step: int) -> Record:
        record = self._store.read_record(self._folders.path(step))
        if record.step != step:
            raise DamagedError(f"its record is of step {record.step}")
        return record

    @contextlib.contextmanager
    def _as_host_errors(self, step: int, size: int) -> Iterator[None]:
        """Raises OSErrors of a save of `size` bytes as HostErrors, after deleting what it left."""
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):
                self._folders.delete_unfinished()
            raise HostError(
                f"{self._folders.path(step)}: cannot be saved: {error.strerror or error} "
                f"(over {size} bytes needed, {self._folders.free_bytes()} free); "
                "free disk space or give access, then run again to resume from the step before"
            ) from error

    def _is_saved(self, step: int) -> bool:
        """Whether a step exists and verifies; process 0 looks for all."""
        problem: str | None = "missing"
        if distributed.is_primary() and step in self.steps():
            problem = self._problem(step)
            if problem:
                self._warn_once(
                    f"{self._folders.path(step)}: damaged checkpoint ({problem}); saving it again, "
                    f"the damaged one becomes {self._folders.damaged_path(step).name}"
                )
        (is_saved,) = distributed.all_max([not problem])
        return bool(is_saved)

    def _prune(self, saved: int) -> None:
        """Deletes all steps but the newest, the best and the damaged, which are evidence."""
        if not distributed.is_primary():
            return
        ranks = self._ranks()
        sound = [s for s, rank in ranks.items() if rank > -math.inf and s not in self._damaged]
        best = min(sound, key=ranks.__getitem__)
        for step in set(sound) - {saved, best, *sound[: self._keep]}:
            self._folders.delete(step)


def _check_finite(step: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises DivergedError where a parameter is not finite."""
    for path, array in arrays.items():
        inexact = jnp.issubdtype(array.dtype, np.inexact)
        if path.startswith(_FINITE) and inexact and not np.isfinite(array).all():
            raise DivergedError(
                f"step {step}: {path} is not finite and was not saved; resume from the step "
                "before with a smaller config.optim.learning_rate"
            )
