"""Writes the files of an export atomically, and overwrites only files of earlier exports."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path

from charjax.errors import InputError
from charjax.runtime.files import replace_content, write_error

_MANIFEST = "charjax-export.json"  # lists the files that an export wrote into its folder
SIGNATURE = "written by charjax export"  # near the start of each export of a single file
_SIGNATURE_BYTES = 1024


def template(name: str, **parts: object) -> str:
    """A file of `templates/` in which each `{{part}}` is replaced."""
    text = (resources.files("charjax.export") / "templates" / name).read_text("utf-8")
    for part, value in parts.items():
        text = text.replace(f"{{{{{part}}}}}", str(value))
    return text


def write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Writes files into a folder, with a manifest that lets later exports replace them.

    Files of an earlier export that are not among them are removed.

    Args:
      out: the folder, created if needed.
      files: contents by name.

    Raises:
      InputError: `out` is a file or below one, or one of the files exists and no export wrote it.
      HostError: the disk is full or cannot be written to.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out={out}: is a file; name a folder")
    ours = _manifest(out)
    for name in {*files, _MANIFEST} - ours:
        _check_absent(out / name)
    with _as_errors_of(out):
        out.mkdir(parents=True, exist_ok=True)
        _write_manifest(out, {*ours, *files})  # first: an interrupted export can be repeated
        for name, content in files.items():
            replace_content(out / name, content)
        for name in ours - {*files, _MANIFEST}:
            (out / name).unlink()
        _write_manifest(out, files)


def write_file(out: Path, content: bytes) -> None:
    """Writes a single file, which must have `SIGNATURE` in its first kilobyte.

    Raises:
      InputError: `out` is a folder, below a file, or a file that no export wrote.
      HostError: the disk is full or cannot be written to.
    """
    if out.is_dir():
        raise InputError(f"--out={out}: is a folder; name a file in it")
    if not _is_signed(out):
        _check_absent(out)
    with _as_errors_of(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_content(out, content)


def _check_absent(path: Path) -> None:
    if os.path.lexists(path):
        raise InputError(
            f"{path}: exists and was not written by charjax export; name another --out"
        )


def _manifest(out: Path) -> set[str]:
    """The files in a folder that an earlier export wrote."""
    path = out / _MANIFEST
    if path.is_symlink() or not path.is_file():
        return set()
    try:
        names = json.loads(path.read_text("utf-8"))["files"]
        return set(os.listdir(out)).intersection(names)
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _write_manifest(out: Path, names: Iterable[str]) -> None:
    replace_content(out / _MANIFEST, json.dumps({"files": sorted({*names, _MANIFEST})}).encode())


def _is_signed(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return SIGNATURE.encode() in file.read(_SIGNATURE_BYTES)


@contextlib.contextmanager
def _as_errors_of(out: Path) -> Iterator[None]:
    """Turns an OSError into an error about the folder or file to write."""
    try:
        yield
    except (NotADirectoryError, FileExistsError):
        raise InputError(f"--out={out}: a folder above it is a file; name another --out") from None
    except OSError as error:
        raise write_error(out, error) from error
