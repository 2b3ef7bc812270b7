"""The folders of a run's steps: how they are named, and how they come and go."""

from __future__ import annotations

import functools
import itertools
import logging
import re
import shutil
from pathlib import Path

from charjax.checkpoint.store import UNFINISHED, is_checkpoint

_logger = logging.getLogger(__name__)


class StepFolders:
    """The steps of a run by name alone: none is opened, none is judged."""

    def __init__(self, directory: Path) -> None:
        """Touches nothing yet."""
        self.directory = directory.absolute()
        self._warn_once = functools.cache(_logger.warning)

    def path(self, step: int) -> Path:
        """Where a step is, or would be."""
        return self.directory / str(step)

    def present(self) -> list[int]:
        """The steps there, oldest to newest; each stray is logged once."""
        found = []
        for entry in self.directory.iterdir() if self.directory.is_dir() else ():
            if not re.fullmatch(r"0|[1-9][0-9]*", entry.name) or not entry.is_dir():
                continue
            if is_checkpoint(entry):
                found.append(int(entry.name))
            else:
                self._warn_once(f"{entry}: not a checkpoint, ignored")
        return sorted(found)

    def aside(self, step: int) -> Path:
        """A name for the step that is free, and that no step has."""
        names = (f"{step}.damaged-{number}" for number in itertools.count(1))
        return next(path for path in map(self.directory.__truediv__, names) if not path.exists())

    def make_way(self, step: int) -> None:
        """Clears a step's place, what is there kept as evidence, and what was cut short."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.sweep()
        path = self.path(step)
        if is_checkpoint(path):
            path.rename(self.aside(step))
        elif path.exists():
            path.rmdir()  # refuses unless it is empty: what lies in it is not ours to delete

    def delete(self, step: int) -> None:
        """Under another name first: a deletion cut short must not look like a damaged step."""
        shutil.rmtree(self.path(step).rename(self.directory / f"{step}{UNFINISHED}"))

    def sweep(self) -> None:
        """Deletes what was cut short."""
        for unfinished in self.directory.glob(f"*{UNFINISHED}*"):
            shutil.rmtree(unfinished)

    def free_bytes(self) -> int:
        """The room left on the disk, even where the folder is not there yet."""
        there = (self.directory, *self.directory.parents)
        return shutil.disk_usage(next(path for path in there if path.exists())).free
