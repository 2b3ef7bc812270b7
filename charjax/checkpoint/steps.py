"""The folders of a run's checkpoints, one a step: names, renames and deletions."""

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
    """One folder a step, named by the step's number. The files in them are not read here."""

    def __init__(self, directory: Path) -> None:
        """Does not touch the disk."""
        self.directory = directory.absolute()
        self._warn_once = functools.cache(_logger.warning)

    def path(self, step: int) -> Path:
        """The folder of a step, whether it exists or not."""
        return self.directory / str(step)

    def steps(self) -> list[int]:
        """The steps on disk, ascending. A folder that is no checkpoint is logged, once."""
        found = []
        for entry in self.directory.iterdir() if self.directory.is_dir() else ():
            if not re.fullmatch(r"0|[1-9][0-9]*", entry.name) or not entry.is_dir():
                continue
            if is_checkpoint(entry):
                found.append(int(entry.name))
            else:
                self._warn_once(f"{entry}: not a checkpoint, ignored")
        return sorted(found)

    def damaged_path(self, step: int) -> Path:
        """An unused path to rename a damaged step to."""
        names = (f"{step}.damaged-{number}" for number in itertools.count(1))
        return next(path for path in map(self.directory.__truediv__, names) if not path.exists())

    def prepare(self, step: int) -> None:
        """Makes the path of a step free, renaming a checkpoint there to its `damaged_path`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.delete_unfinished()
        path = self.path(step)
        if is_checkpoint(path):
            path.rename(self.damaged_path(step))
        elif path.exists():
            path.rmdir()  # fails unless it is empty: other files in it are not ours to delete

    def delete(self, step: int) -> None:
        """Deletes a step, under another name: if interrupted, it must not look damaged."""
        shutil.rmtree(self.path(step).rename(self.directory / f"{step}{UNFINISHED}"))

    def delete_unfinished(self) -> None:
        """Deletes what interrupted saves and deletions have left."""
        for unfinished in self.directory.glob(f"*{UNFINISHED}*"):
            shutil.rmtree(unfinished)

    def free_bytes(self) -> int:
        """The free space on the folder's disk, also before the folder is made."""
        folders = (self.directory, *self.directory.parents)
        return shutil.disk_usage(next(path for path in folders if path.exists())).free
