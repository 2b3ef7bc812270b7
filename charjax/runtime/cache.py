"""The user's cache: files that can be downloaded or compiled again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """`charjax/NAME` below `$XDG_CACHE_HOME`, or below `~/.cache` where that is not set."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(os.path.expanduser(cache)) / "charjax" / name
