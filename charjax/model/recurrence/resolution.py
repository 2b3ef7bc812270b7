"""Which implementation runs the recurrence; recorded in every run."""

from __future__ import annotations

from typing import NamedTuple


class Resolution(NamedTuple):
    """The implementation that runs the recurrence, and why.

    Attributes:
      implementation: "c", "persistent", "xla", "parallel" or "scan".
      reason: for messages: "as the config says", "c refuses: no C compiler (cc)", ...
    """

    implementation: str
    reason: str
