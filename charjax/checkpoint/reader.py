"""Reads the checkpoints of a run, which may be training meanwhile; imports no JAX, no Orbax."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from charjax.checkpoint.files import read_arrays, read_record
from charjax.checkpoint.record import DamagedError, Leaf, Record
from charjax.checkpoint.steps import StepFolders
from charjax.errors import CheckpointError, InputError
from charjax.schema import integer

_logger = logging.getLogger(__name__)
_MAX_TRIES = 100  # to read a checkpoint while a run deletes and saves

Which: TypeAlias = Literal["newest", "best"] | int
_T = TypeVar("_T")


def check_which(which: Which) -> None:
    """Raises InputError for what is neither "newest", "best" nor an integer."""
    if which not in ("newest", "best") if isinstance(which, str) else integer(which) is None:
        raise InputError(f"which={which!r}: must be best, newest or the number of a step")


class _DeletedError(Exception):
    """A checkpoint was deleted or replaced while it was read."""


class CheckpointReader:
    """The checkpoints in a folder, read only; a run may be writing to it."""

    def __init__(self, directory: Path) -> None:
        """Does not touch the disk."""
        self._warn_once = functools.cache(_logger.warning)
        self._folders = StepFolders(directory)
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """The steps on disk, ascending, damaged ones included."""
        return self._folders.steps()

    def read_arrays(
        self, wanted: Callable[[Record], Mapping[str, Leaf]], *, which: Which = "newest"
    ) -> tuple[Record, dict[str, np.ndarray]]:
        """Reads and verifies a part of a checkpoint.

        Args:
          wanted: called with the record of a step; returns the arrays to read, as
            {path: `Leaf` of the shape and dtype expected}, whose digests are ignored.
          which: "newest", "best" (lowest val_loss) or the number of a step. "newest" and
            "best" skip damaged steps, with a warning.

        Returns:
          The record, and the arrays by path.

        Raises:
          CheckpointError: there is no such step, no step verifies, or a wanted array was not saved
            or has another shape or dtype.
        """

        def read(step: int) -> tuple[Record, dict[str, np.ndarray]]:
            record = self._record(step)
            leaves = {path: record.leaf(path, leaf) for path, leaf in wanted(record).items()}
            return record, read_arrays(self._folders.path(step), leaves)

        return self._undisturbed(lambda: self._first_intact(which, read))

    def read_meta(self, *, which: Which = "newest") -> Record:
        """Reads and verifies a record; `which` and the errors are those of `read_arrays`."""
        return self._undisturbed(lambda: self._first_intact(which, self._record))

    def verify(self) -> list[tuple[int, str]]:
        """Verifies all checkpoints: pairs (step, its damage or "" if it has none), ascending.

        Leaves out steps that a run deletes meanwhile.

        Raises:
          CheckpointError: no run has its checkpoints there, see `StepFolders.check_place`.
        """
        self._folders.check_place()

        def verdicts() -> list[tuple[int, str]]:
            steps = self.steps()
            problems = [(step, self._problem(step)) for step in steps]
            found = [(step, problem) for step, problem in problems if problem is not None]
            if steps and not found:
                raise _DeletedError
            return found

        return self._undisturbed(verdicts)

    def _candidates(self, which: Which) -> list[int]:
        """The steps to try to read, in this order.

        Raises:
          InputError: `which` is none of its values.
          CheckpointError: there is no step, or not the one asked for.
        """
        check_which(which)
        steps = self.steps()
        if not steps:
            self._folders.check_place()
            raise CheckpointError(
                f"{self._folders.directory}: holds no checkpoint; train this run first"
            )
        if not isinstance(which, str):
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
        """{step: sort key for "best"}, from the newest step to the oldest.

        The key is val_loss; infinity if there is none, or if it was measured on another validation
        text than that of the newest step. A step with a damaged record has minus infinity: it is
        tried first, so that its damage is reported.
        """
        ranks: dict[int, float] = {}
        newest_id = None
        for step in reversed(self.steps()):
            try:
                record = self._read(step, self._record)
            except DamagedError:
                ranks[step] = -math.inf
                continue
            newest_id = newest_id or record.val_text_id
            val_loss = record.val_loss if record.val_text_id == newest_id else None
            ranks[step] = math.inf if val_loss is None else val_loss
        return ranks

    def _undisturbed(self, read: Callable[[], _T]) -> _T:
        """Calls `read`, again if a run deletes a step while it is read."""
        for _ in range(_MAX_TRIES):
            with contextlib.suppress(_DeletedError):
                return read()
        raise CheckpointError(
            f"{self._folders.directory}: a run deletes its checkpoints faster than they can be "
            "read; try again, or have the run save less often"
        )

    def _first_intact(self, which: Which, read: Callable[[int], _T]) -> _T:
        """The result of `read` for the first step that is not damaged."""
        candidates = self._candidates(which)
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

    def _problem(self, step: int) -> str | None:
        """The damage of a step; "" if it verifies, None if it was deleted meanwhile."""

        def read(step: int) -> None:
            read_arrays(self._folders.path(step), self._record(step).leaves)

        try:
            self._read(step, read)
        except DamagedError as error:
            return str(error)
        except _DeletedError:
            return None
        return ""

    def _read(self, step: int, read: Callable[[int], _T]) -> _T:
        """Calls `read`, and tells a damaged step from one that a run deleted meanwhile.

        Raises:
          DamagedError: the step is damaged.
          _DeletedError: the step was deleted or replaced while it was read.
        """
        before = self._folders.identity(step)
        try:
            return read(step)
        except DamagedError:
            if before is None or self._folders.identity(step) != before:
                raise _DeletedError from None
            raise

    def _record(self, step: int) -> Record:
        record = read_record(self._folders.path(step))
        if record.step != step:
            raise DamagedError(f"the folder has the record of step {record.step}")
        return record
