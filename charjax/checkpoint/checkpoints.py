"""The checkpoints of a run: which are kept, and which of them is trusted.

Orbax would take any folder with a number for the newest step, refuse to save
below it, and delete a newest step that is not the best. So the search for a
good step, and what is deleted, are decided here.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from charjax.checkpoint.record import DamagedError, Record, describe, flatten
from charjax.checkpoint.steps import StepFolders
from charjax.checkpoint.store import Store, to_host
from charjax.errors import CheckpointError, DivergedError, HostError
from charjax.runtime import distributed
from charjax.types import PyTree

_logger = logging.getLogger(__name__)
_FINITE = ("params", "ema")  # what a checkpoint is for: never saved with a NaN

Which: TypeAlias = Literal["newest", "best"] | int
_T = TypeVar("_T")


@dataclass(frozen=True)
class Restored(Record):
    """A step that verified: its record, and numpy arrays in the structure asked for."""

    state: PyTree


class Checkpoints:
    """The steps saved in one folder. It has one writer at a time, see `Workdir.lock`."""

    def __init__(self, directory: Path, *, keep: int = 1) -> None:
        """Touches nothing yet. Damaged checkpoints and their replacements are logged, once each.

        Args:
          directory: where the steps are; made by the first `save`.
          keep: how many of the newest steps stay, beside the one with the lowest val_loss.
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
        """Saves a step, whole or not at all, then deletes those no longer kept.

        A step that exists and verifies stays as it is; a damaged one is set aside.

        Args:
          step: steps done.
          state: any pytree of jax or numpy arrays, on any devices.
          meta: JSON values.
          val_loss: nats per character; one that is not finite counts as none.

        Raises:
          DivergedError: a parameter is not finite; nothing was saved.
          HostError: the disk refused; the other steps are untouched.
        """
        leaves, _ = flatten(state)
        arrays = to_host(leaves)
        _check_finite(step, arrays)
        if self._stays(step):
            return
        described = {path: describe(array) for path, array in arrays.items()}
        record = Record(step, val_loss, dict(meta), described)
        with self._writing(step, sum(array.nbytes for array in arrays.values())):
            if distributed.is_primary():
                self._folders.make_way(step)
            self._store.write(self._folders.path(step), leaves, arrays, record)
            self._damaged.discard(step)
            self._prune(step)

    def steps(self) -> list[int]:
        """The steps present, oldest to newest, damaged ones included; strays are logged."""
        return self._folders.present()

    def restore(self, like: PyTree, *, which: Which = "newest") -> Restored:
        """The newest (or best, or given) step that verifies.

        Args:
          like: arrays or `ShapeDtypeStruct`s in the structure wanted, which may be a
            part of what was saved, such as {"params": ...}.
          which: "newest", "best" (lowest val_loss) or the number of a step. The first
            two fall back on the next one, with a warning, while a step is damaged.

        Raises:
          CheckpointError: there is no such step, none verifies, or `like` asks for a
            leaf, a shape or a dtype that was not saved.
        """
        wanted, structure = flatten(like)

        def read(step: int) -> Restored:
            record = self._record(step)
            leaves = {path: record.leaf(path, like=leaf) for path, leaf in wanted.items()}
            arrays = self._store.read_arrays(self._folders.path(step), leaves)
            state = jax.tree.unflatten(structure, [arrays[path] for path in wanted])
            return Restored(**vars(record), state=state)

        return self._first_good(which, read)

    def read_meta(self, *, which: Which = "newest") -> Record:
        """As `restore`, without reading the arrays, which are then not verified either."""
        return self._first_good(which, self._record)

    def verify(self) -> list[tuple[int, str]]:
        """Reads every step whole: (step, what is wrong with it or ""), oldest to newest."""
        return [(step, self._problem(step)) for step in self.steps()]

    def _candidates(self, which: Which) -> list[int]:
        """The steps to try, in this order."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"{self._folders.directory}: holds no checkpoint; train this run first"
            )
        if isinstance(which, int):
            if which not in steps:
                there = ", ".join(map(str, steps))
                raise CheckpointError(
                    f"{self._folders.path(which)}: no such step; there are {there}"
                )
            return [which]
        newest_first = steps[::-1]
        return newest_first if which == "newest" else sorted(newest_first, key=self._rank)

    def _rank(self, step: int) -> float:
        """The lower the better; a damaged record comes first, to be tried and reported."""
        try:
            val_loss = self._record(step).val_loss
        except DamagedError:
            return -math.inf
        return math.inf if val_loss is None else val_loss

    def _first_good(self, which: Which, read: Callable[[int], _T]) -> _T:
        candidates = self._candidates(which)
        for step, following in zip(candidates, [*candidates[1:], None], strict=True):
            try:
                return read(step)
            except DamagedError as error:
                self._damaged.add(step)
                remedy = "no other to use" if following is None else f"trying step {following}"
                self._warn_once(
                    f"{self._folders.path(step)}: damaged checkpoint ({error}); {remedy}"
                )
        tried = ", ".join(map(str, candidates))
        raise CheckpointError(
            f"{self._folders.directory}: no checkpoint that verifies (tried {tried}); "
            "bring back a copy of this folder, or start again in another --workdir"
        )

    def _problem(self, step: int) -> str:
        try:
            self._store.read_arrays(self._folders.path(step), self._record(step).leaves)
        except DamagedError as error:
            return str(error)
        return ""

    def _record(self, step: int) -> Record:
        record = self._store.read_record(self._folders.path(step))
        if record.step != step:
            raise DamagedError(f"its record is of step {record.step}")
        return record

    @contextlib.contextmanager
    def _writing(self, step: int, size: int) -> Iterator[None]:
        """Sweeps up where the disk refuses, and says what it refused."""
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):
                self._folders.sweep()
            raise HostError(
                f"{self._folders.path(step)}: cannot be saved: {error.strerror or error} "
                f"(over {size} bytes needed, {self._folders.free_bytes()} free); "
                "make room or access there, then run again to resume from the step before"
            ) from error

    def _stays(self, step: int) -> bool:
        """Whether the step is there and verifies; one process looks for all."""
        problem = "not there"
        if distributed.is_primary() and step in self.steps():
            problem = self._problem(step)
            if problem:
                self._warn_once(
                    f"{self._folders.path(step)}: damaged checkpoint ({problem}); writing it anew, "
                    f"the damaged one becomes {self._folders.aside(step).name}"
                )
        (stays,) = distributed.all_max([not problem])
        return bool(stays)

    def _prune(self, saved: int) -> None:
        """Keeps the newest and the best. Damaged steps neither count nor go: they are evidence."""
        if not distributed.is_primary():
            return
        ranks = {step: self._rank(step) for step in reversed(self.steps())}
        sound = [s for s, rank in ranks.items() if rank > -math.inf and s not in self._damaged]
        best = min(sound, key=ranks.__getitem__)
        for step in set(sound) - {saved, best, *sound[: self._keep]}:
            self._folders.delete(step)


def _check_finite(step: int, arrays: Mapping[str, np.ndarray]) -> None:
    for path, array in arrays.items():
        inexact = jnp.issubdtype(array.dtype, np.inexact)
        if path.startswith(_FINITE) and inexact and not np.isfinite(array).all():
            raise DivergedError(
                f"step {step}: {path} is not finite and was not saved; resume from the step "
                "before with a smaller config.optim.learning_rate"
            )
