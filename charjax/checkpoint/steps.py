"""The folders of a run's checkpoints, one per step: names, renames and deletions."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
import shutil
from pathlib import Path

from charjax.checkpoint.read import UNFINISHED, is_checkpoint
from charjax.runtime.files import replace_file

_logger = logging.getLogger(__name__)
_STEP = r"0|[1-9][0-9]*"


class StepFolders:
    """One folder per step, named by its number. The files in them are not read here."""

    def __init__(self, directory: Path) -> None:
        """Does not touch the disk."""
        self.directory = directory.absolute()
        self._warn_once = functools.cache(_logger.warning)

    def path(self, step: int) -> Path:
        """The folder of a step, whether it exists or not."""
        return self.directory / str(step)

    def steps(self) -> list[int]:
        """The steps on disk, ascending. A folder that is no checkpoint is logged, once."""
        while True:
            entries = self.directory.iterdir() if self.directory.is_dir() else ()
            named = [entry for entry in entries if re.fullmatch(_STEP, entry.name)]
            found = [int(e.name) for e in named if not e.is_symlink() and is_checkpoint(e)]
            others = [entry for entry in named if int(entry.name) not in found]
            if all(map(os.path.lexists, others)):
                break  # or else a run has just deleted one, and saved another before that
        for entry in others:
            if entry.is_dir():
                self._warn_once(f"{entry}: not a checkpoint, ignored")
        return sorted(found)

    def identity(self, step: int) -> tuple[int, int] | None:
        """Differs once a step was deleted, also if it was saved again; None: there is none."""
        try:
            status = self.path(step).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def damaged_path(self, step: int) -> Path:
        """An unused path to rename a damaged step to."""
        names = (f"{step}.damaged-{number}" for number in itertools.count(1))
        return next(path for path in map(self.directory.__truediv__, names) if not path.exists())

    def prepare(self, step: int) -> None:
        """Frees the path of a step: renames a checkpoint there to its `damaged_path`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.delete_unfinished()
        path = self.path(step)
        if is_checkpoint(path):
            replace_file(path, self.damaged_path(step))
        elif path.exists():
            path.rmdir()  # fails unless it is empty: other files in it are not ours to delete

    def delete(self, step: int) -> None:
        """Renames a step, then deletes it: an interrupted deletion must not look like damage."""
        renamed = self.directory / f"{step}{UNFINISHED}"
        replace_file(self.path(step), renamed)
        shutil.rmtree(renamed)

    def delete_unfinished(self) -> None:
        """Deletes what interrupted saves and deletions have left."""
        for path in self.directory.glob(f"*{UNFINISHED}*"):
            if not re.fullmatch(f"({_STEP}){re.escape(UNFINISHED)}.*", path.name):
                continue  # not ours, and in nobody's way
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def free_bytes(self) -> int:
        """The free space on the folder's disk, also before the folder is made."""
        folders = (self.directory, *self.directory.parents)
        return shutil.disk_usage(next(path for path in folders if path.exists())).free
