"""The folders of a run's checkpoints, one per step: names, renames and deletions."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
import shutil
from pathlib import Path

from charjax.checkpoint.files import UNFINISHED, is_checkpoint
from charjax.errors import CheckpointError, InputError
from charjax.runtime.files import replace_file

_logger = logging.getLogger(__name__)
_STEP = r"0|[1-9][0-9]*"


class StepFolders:
    """A folder with one subfolder per step, named by its number. Reads no file in them."""

    def __init__(self, directory: Path) -> None:
        """Does not touch the disk."""
        self.directory = directory.absolute()
        self._warn_once = functools.cache(_logger.warning)

    def path(self, step: int) -> Path:
        """The folder of a step, which need not exist."""
        return self.directory / str(step)

    def steps(self) -> list[int]:
        """The steps on disk, ascending. Warns once of other folders named by a number."""
        while True:
            entries = self.directory.iterdir() if self.directory.is_dir() else ()
            named = [entry for entry in entries if re.fullmatch(_STEP, entry.name)]
            found = [int(e.name) for e in named if not e.is_symlink() and is_checkpoint(e)]
            others = [entry for entry in named if int(entry.name) not in found]
            if all(map(os.path.lexists, others)):
                break  # else a run deleted a step meanwhile, and may have saved another: look again
        for entry in others:
            if entry.is_dir():
                self._warn_once(f"{entry}: not a checkpoint, ignored")
        return sorted(found)

    def check_place(self) -> None:
        """Raises CheckpointError for a folder below a file, a checkpoint or a run's checkpoints.

        One of these was given in place of a run's folder.
        """
        if not self._existing().is_dir():
            raise CheckpointError(f"{self._existing()}: not a folder; name the folder of a run")
        given = self.directory.parent
        if is_checkpoint(given):
            raise CheckpointError(
                f"{given}: a checkpoint, not a run; name the folder of its run, "
                f"{given.parents[1]}, where a step can be chosen by --checkpoint={given.name}"
            )
        if any(map(is_checkpoint, given.glob("[0-9]*"))):
            raise CheckpointError(
                f"{given}: the checkpoints of a run; name the folder of the run, {given.parent}"
            )

    def identity(self, step: int) -> tuple[int, int] | None:
        """Identifies the folder of a step: another one if it was replaced, None if it is gone."""
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
        """Makes the path of a step free to save to; a damaged checkpoint there is renamed.

        Raises:
          InputError: there are other files.
        """
        # Without its parents: where a run's folder is gone, one of another place must not appear.
        self.directory.mkdir(exist_ok=True)
        self.delete_unfinished()
        path = self.path(step)
        if is_checkpoint(path):
            replace_file(path, self.damaged_path(step))
        elif os.path.lexists(path):
            if path.is_symlink() or not path.is_dir() or any(path.iterdir()):
                raise InputError(
                    f"{path}: not a checkpoint, where the run is to save one; move it away, then "
                    "start the same command again"
                )
            path.rmdir()

    def delete(self, step: int) -> None:
        """Deletes a step, renamed first: an interrupted deletion must not look like damage."""
        renamed = self.directory / f"{step}{UNFINISHED}"
        replace_file(self.path(step), renamed)
        shutil.rmtree(renamed)

    def delete_unfinished(self) -> None:
        """Deletes the folders of interrupted saves and deletions."""
        for path in self.directory.glob(f"*{UNFINISHED}*"):
            if not re.fullmatch(f"({_STEP}){re.escape(UNFINISHED)}.*", path.name):
                continue  # not written by charjax
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def free_bytes(self) -> int:
        """The free space on the folder's disk; the folder need not exist."""
        return shutil.disk_usage(self._existing()).free

    def _existing(self) -> Path:
        """The folder, or the nearest one above it that exists."""
        return next(filter(os.path.exists, (self.directory, *self.directory.parents)))
