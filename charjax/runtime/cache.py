"""The folder of what is kept for the user between runs, and can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(room: str) -> Path:
    """Where `room` keeps its files: below `$XDG_CACHE_HOME`, else below `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(os.path.expanduser(cache)) / "charjax" / room
