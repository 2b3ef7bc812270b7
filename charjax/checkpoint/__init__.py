"""Checkpoints: `record` (metadata and digests), `store` (one on disk), `steps`, `checkpoints`."""

from charjax.checkpoint.checkpoints import Checkpoints, Restored, Which
from charjax.checkpoint.record import Record

__all__ = ["Checkpoints", "Record", "Restored", "Which"]
