"""Finds the text files that a path names."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from charjax.data.sources import remote
from charjax.errors import InputError
from charjax.runtime.display import counted
from charjax.runtime.paths import expand_path, in_any_case, is_address, starting_folder

# Files and folders of a run, left out if a run.json is beside them; see `charjax.workdir.Workdir`.
RUN_FILES = re.compile(
    r"(run\.json|choice\.json|input\.txt|metrics\.jsonl|samples\.txt|curves\.png|"
    r"process-.*\.log|events\.out\..*)"
)
RUN_FOLDERS = ("checkpoints",)

_logger = logging.getLogger(__name__)


class TextFiles(NamedTuple):
    """The files that a path names.

    Attributes:
      paths: in the order in which they are read.
      from_search: whether some were found in a folder or by a glob, not named one by one; then
        binary files are left out.
    """

    paths: tuple[str, ...]
    from_search: bool


def find_files(given: str, option: str) -> TextFiles:
    """Finds the files of a path: a file, a folder, a glob, or several of these, comma-separated.

    An address such as gs://bucket/texts/*.txt is found by `charjax.data.sources.remote`.

    A folder means the glob `FOLDER/**/*.txt`. Suffixes match in upper and lower case. Hidden
    files, files that a run of charjax wrote, broken links, and links to a file that was found
    already are left out; their number is logged.

    Args:
      given: the path. If it exists as a whole, commas are part of its name.
      option: the flag or config field that gave it, for messages.

    Raises:
      InputError: there is no such file, or no text in the folder.
    """
    is_one = is_address(given) or os.path.exists(expand_path(given, option))
    is_list = "," in given and not is_one
    paths: dict[str, None] = {}
    left_out: Counter[str] = Counter()
    from_search = False
    parts = given.split(",") if is_list else [given]
    if is_list and "" in parts:
        raise InputError(f"{option}={given!r}: a comma without a path beside it; leave it out")
    for part in parts:
        path = expand_path(part, option)
        is_remote = is_address(part)
        found = remote.find(part, option, left_out) if is_remote else _find(path, left_out)
        from_search = from_search or found != [path]
        if not found:
            but = f", but {_counted(left_out)}" if left_out.total() else ""
            raise InputError(
                f"{option}={given!r}: no text file there{starting_folder(path)}{but}; "
                "give a file, a folder with *.txt, or a glob such as 'texts/**/*.txt'"
            )
        paths |= dict.fromkeys(found)
    if left_out.total():
        _logger.info("%s: left out %s", given, _counted(left_out))
    return TextFiles(tuple(paths), from_search)


def check_no_pipe(files: TextFiles, option: str) -> None:
    """Refuses what can be read only once, where a text is read again.

    Raises:
      InputError: a path is a pipe, as of <(COMMAND) in a shell, or "-", the standard input.
    """
    for path in files.paths:
        if path == "-" or (not is_address(path) and Path(path).is_fifo()):
            raise InputError(
                f"{option}={path!r}: a pipe, which cannot be read again; save the text to a file"
            )


def _find(path: str, left_out: Counter[str]) -> list[str]:
    """The path itself, or the text files of a folder or a glob; see `_search`."""
    if os.path.isdir(path):
        return _search(os.path.join(glob.escape(path), "**", "*.txt"), left_out)
    if glob.has_magic(path) and not os.path.exists(path):
        return _search(path, left_out)
    return [path]


def _search(pattern: str, left_out: Counter[str]) -> list[str]:
    """The text files that a glob matches, sorted; counts in `left_out` the others by reason."""
    pattern = in_any_case(pattern)
    _report_closed_folders(pattern)
    visible = {p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)}
    matches = glob.glob(pattern, recursive=True, include_hidden=True)
    left_out["hidden"] += sum(p not in visible and os.path.isfile(p) for p in matches)
    missing = {os.path.realpath(p) for p in matches if not os.path.exists(p)}
    left_out["behind a broken link"] += len(missing)
    found: dict[str, str] = {}  # by the resolved path
    for path in sorted(visible):
        if _is_written_by_charjax(Path(path)):
            left_out["written by charjax"] += 1
        elif found.setdefault(os.path.realpath(path), path) != path:
            left_out["another name of the same file"] += 1
    return list(found.values())


def _report_closed_folders(pattern: str) -> None:
    """Warns of folders that cannot be listed, which `glob` passes over."""
    start, recursive, _ = pattern.partition("**")

    def report(error: OSError) -> None:
        _logger.warning(f"NOTICE: {error.filename}: left out: cannot be listed ({error.strerror})")

    for root in glob.glob(start or os.curdir) if recursive else []:
        for _, folders, _ in os.walk(root, onerror=report):
            folders[:] = [name for name in folders if not name.startswith(".")]


def _is_written_by_charjax(path: Path) -> bool:
    """Whether the file is one that a run wrote into its folder."""
    if RUN_FILES.fullmatch(path.name) and (path.parent / "run.json").exists():
        return True
    return any(
        folder.name in RUN_FOLDERS and (folder.parent / "run.json").exists()
        for folder in path.parents
    )


def _counted(left_out: Counter[str]) -> str:
    """Such as "3 files: 2 hidden, 1 written by charjax", from the number of files by reason."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n)
    return f"{counted(left_out.total(), 'file')}: {reasons}"
