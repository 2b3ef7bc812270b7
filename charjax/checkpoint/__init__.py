"""Checkpoints: record (what one says about itself), store (one on the disk), history (all)."""

from charjax.checkpoint.history import Checkpoints, Restored, Which
from charjax.checkpoint.record import Record

__all__ = ["Checkpoints", "Record", "Restored", "Which"]
