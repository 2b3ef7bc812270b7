"""A run's folder: its files; `charjax.runtime.folder_lock` has the lock that gives it one writer.

Nothing in it is ever executed or unpickled: `run.json` and the logs are text, the checkpoints
arrays and JSON. No file in it is written through a link: the folder may come from someone else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charjax.errors import HostError, InputError
from charjax.runtime.files import (
    not_regular,
    open_regular,
    replace_content,
    replace_json,
    write_error,
)
from charjax.runtime.folder_lock import lock_file, lock_folder, open_lock_file
from charjax.runtime.paths import check_local

LOGS = ("metrics.jsonl", "samples.txt")
HUB_FILES = ("config.json", "model.safetensors", "vocabulary.json")


@dataclass(frozen=True)
class Workdir:
    """The files of one run, all below `path`."""

    path: Path

    def __post_init__(self) -> None:
        """Raises InputError for the address of a remote folder, or a name that Orbax gets wrong.

        TensorStore takes a backslash for a slash, and Orbax a bracket for a pattern.
        """
        check_local(self.path, "--workdir")
        if wrong := {"[", "\\"}.difference(os.sep).intersection(str(self.path.absolute())):
            raise InputError(
                f"{self.path}: checkpoints cannot be saved below a folder with {min(wrong)} in its "
                "name; choose another folder"
            )

    @property
    def run_json(self) -> Path:
        """What this run is: config, vocabulary, corpus, versions."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """The log of metrics: one JSON object per line."""
        return self.path / LOGS[0]

    @property
    def samples(self) -> Path:
        """The log of texts sampled during training."""
        return self.path / LOGS[1]

    @property
    def curves(self) -> Path:
        """The plot of the losses."""
        return self.path / "curves.png"

    @property
    def choice(self) -> Path:
        """What was chosen for a text that came without a config; see `charjax.train.choice`."""
        return self.path / "choice.json"

    @property
    def input(self) -> Path:
        """The text that came from standard input."""
        return self.path / "input.txt"

    @property
    def checkpoints(self) -> Path:
        """The folder of `charjax.checkpoint.checkpoints.Checkpoints`."""
        return self.path / "checkpoints"

    @property
    def is_hub(self) -> bool:
        """Whether the folder holds a model as `charjax export --format=hub` writes it, no run."""
        exported = all((self.path / name).is_file() for name in HUB_FILES)
        return exported and not self.checkpoints.exists()

    def create(self) -> None:
        """Makes the folder if it is missing, and checks that a run can write to it.

        Raises:
          InputError: the path, or a parent of it, is a file; or what a run writes is a link, or
            no regular file or folder; or the folder holds a model in the layout of the hub, or is
            among the checkpoints of a run, which deletes old ones.
          HostError: the folder cannot be made or written to.
        """
        try:
            if self.is_hub:
                raise InputError(
                    f"{self.path}: holds an exported model, which is not trained in place; train "
                    f"on with --init_from={self.path} in another --workdir"
                )
            for run in map(Workdir, self.path.absolute().parents):
                if self.path.absolute().is_relative_to(run.checkpoints) and run.run_json.exists():
                    raise InputError(
                        f"{self.path}: is among the checkpoints of a run; name the folder of that "
                        f"run, {run.path}, to resume it, or choose another folder"
                    )
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_entries()
            os.close(open_lock_file(self.path))
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"{self.path}: not a folder; choose another") from None
        except OSError as error:
            raise write_error(self.path, error) from None

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """A context in which this process alone may write; the lock ends with the process, too.

        Raises:
          HostError: another process has the lock, or the folder cannot be written to.
          InputError: its lock file is not one of a run.
        """
        return lock_folder(self.path)

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """A context in which the folder exists and this process alone may write, for a run.

        After an error, a folder that it has made and that nothing was written to is removed; not
        on Windows, where an open file, such as the lock, cannot be.

        Raises:
          CharjaxError: as `create` and `lock`.
        """
        folders = (self.path, *self.path.parents)
        # `Path.exists` would raise for a name that is too long.
        made = [folder for folder in folders if not os.path.exists(folder)]
        self.create()
        with self.lock():
            try:
                yield
            except BaseException:
                with contextlib.suppress(OSError):
                    if made and [*self.path.iterdir()] == [lock_file(self.path)]:
                        lock_file(self.path).unlink()
                        for folder in made:
                            folder.rmdir()
                raise

    def check_lock(self) -> None:
        """Checks that this is the folder that process 0 has locked.

        Raises:
          HostError: it is another one, on a host that does not share process 0's file system.
        """
        if not lock_file(self.path).exists():
            raise HostError(
                f"{self.path}: not the folder that process 0 of this run has on its host; "
                "choose a --workdir on a file system that all hosts share"
            )

    def check_start(self) -> None:
        """Checks that a run may start here at step 0.

        Raises:
          InputError: there are logs or other files that no run without a checkpoint has written.
        """
        written = (self.run_json, self.metrics, self.samples, self.curves)
        existing = [path.name for path in written if path.exists()]
        if existing and not self._unsaved.exists():
            raise InputError(
                f"{self.path}: has {', '.join(existing)} but no checkpoint: they are not a run's, "
                "or its checkpoints were moved away; put those back, or choose another --workdir"
            )

    def start(self) -> None:
        """Empties the logs of a run that starts at step 0, as it has no checkpoint.

        Raises:
          InputError: as `check_start`.
          HostError: the folder cannot be written to.
        """
        self.check_start()
        replace_content(self._unsaved, b"this run has no checkpoint yet\n")
        self.truncate_logs(dict.fromkeys(self.log_sizes(), 0))

    def mark_saved(self) -> None:
        """Notes that the run has a checkpoint, so that its logs are never emptied by `start`."""
        self._unsaved.unlink(missing_ok=True)

    def write_run(self, values: Mapping[str, Any]) -> None:
        """Replaces `run.json`, see `charjax.runtime.files.replace_json`."""
        replace_json(self.run_json, values)

    def log_sizes(self) -> dict[str, int]:
        """{file name: bytes} of both logs; 0 for a missing one."""
        return {
            log.name: log.stat().st_size if log.exists() else 0
            for log in (self.metrics, self.samples)
        }

    def truncate_logs(self, sizes: Mapping[str, int]) -> None:
        """Truncates both logs to the sizes that `log_sizes` returned; a shorter one stays.

        Raises:
          InputError: a log is a link, or another kind of file.
          HostError: a log cannot be written to.
        """
        try:
            for log in (self.metrics, self.samples):
                if log.exists() and log.stat().st_size > sizes[log.name]:
                    with os.fdopen(open_regular(log, os.O_RDWR), "r+b") as file:
                        file.truncate(sizes[log.name])
        except OSError as error:
            raise write_error(self.path, error) from None

    @property
    def _unsaved(self) -> Path:
        """Exists from the start of a run until its first checkpoint."""
        return self.path / ".unsaved"

    def _check_entries(self) -> None:
        """Raises InputError for a link, or another kind of file, where a run writes."""
        files = (
            *(self.run_json, self.metrics, self.samples, self.curves, self.choice, self.input),
            *(lock_file(self.path), self._unsaved),
        )
        folders = (self.checkpoints, self.path / "tensorboard")
        steps = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        wrong = [path for path in (*files, *folders, *steps) if path.is_symlink()]
        wrong += [path for path in files if path.exists() and not path.is_file()]
        wrong += [path for path in folders if path.exists() and not path.is_dir()]
        for path in wrong:
            raise not_regular(path)
