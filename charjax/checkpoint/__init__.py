"""Checkpoints: record (what one says of itself), store (one on the disk), steps, history (all)."""

from charjax.checkpoint.checkpoints import Checkpoints, Restored, Which
from charjax.checkpoint.record import Record

__all__ = ["Checkpoints", "Record", "Restored", "Which"]
