"""Paths as a user writes them: `~`, environment variables and addresses, alike in every option."""

from __future__ import annotations

import os
import re
from pathlib import Path, PureWindowsPath

from charjax.errors import InputError

_SUFFIX = re.compile(r"(?<=\.)[A-Za-z]+$")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://.*")
_ADDRESS_IN_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/.*")  # a Path has one slash of the two


def expand_path(given: str, option: str) -> str:
    """The path with `~`, `~user`, `$NAME` and `${NAME}` replaced; an address as it is.

    A name with a `$` that is no variable, but does exist, stays as it is.

    Args:
      given: the path.
      option: the flag or config field that gave it, for the message.

    Raises:
      InputError: the path is empty, or names a variable or a user that there is not.
    """
    if not given:
        raise InputError(f"{option}=: is empty; name a path")
    if is_address(given):
        return given

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ and not os.path.lexists(given):
            raise InputError(
                f"{option}={given}: the environment variable {name} is not set; set it"
            )
        return os.environ.get(name, match[0])

    path = os.path.expanduser(_VARIABLE.sub(value, given))
    if not path:
        raise InputError(f"{option}={given}: is empty; set the variable to a path")
    if given.startswith("~") and path.startswith("~"):
        raise InputError(f"{option}={given}: there is no such user; write ./{given} for a file")
    return path


def without_folders(paths: str) -> str:
    """The names at the end of paths with commas between them, for texts that others read."""
    return ",".join(PureWindowsPath(path).name for path in paths.split(","))  # splits at / and \


def starting_folder(path: str) -> str:
    """For a message about a missing file: where a relative path starts; "" for another path."""
    if is_address(path) or os.path.isabs(path):
        return ""
    return f" (a relative path, from the current folder {Path.cwd()})"


def in_any_case(pattern: str) -> str:
    """A glob whose suffix, such as .txt, matches in upper and lower case."""
    return _SUFFIX.sub(
        lambda match: "".join(f"[{c.lower()}{c.upper()}]" for c in match[0]), pattern
    )


def is_address(path: str) -> bool:
    """Whether a path is an address such as gs://bucket/folder."""
    return bool(_ADDRESS.fullmatch(path))


def kvstore_folder(path: str | Path) -> str:
    """A folder as TensorStore's driver of files takes it: absolute, without ".."."""
    folder = Path(path).absolute()
    if ".." in folder.parts:
        folder = folder.resolve()
    return f"{folder.as_posix()}/"


def check_local(path: Path, flag: str) -> None:
    """Refuses an address such as gs://bucket/run where a path of this machine is needed.

    Raises:
      InputError: the path begins with the scheme of an address.
    """
    if _ADDRESS_IN_PATH.fullmatch(str(path)):
        address = str(path).replace(":/", "://", 1)
        raise InputError(
            f"{flag}={address}: an address, not a path of this machine; choose a local path, and "
            "copy from or to the address"
        )
