"""Prefetching: a thread makes training batches before they are asked for."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from charjax.data.batches import Batch, Batches, Slices

_STEPS = 24  # made ahead: two dispatches of the default length and some


class ReadAhead(Batches):
    """Batches of which a thread makes the next ones ahead, since a text on disk is slow to read.

    An error of a batch is raised when this batch is asked for, not before.
    """

    def __init__(self, batches: Batches) -> None:
        """Starts no thread."""
        self._batches = batches
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: dict[tuple[int | None, ...], Future[Batch]] = {}  # by step and rows

    def __getattr__(self, name: str) -> Any:
        """The sizes of the batches."""
        return getattr(self._batches, name)

    def slices(self, step: int, rows: slice) -> Slices:
        """As in `Batches`."""
        return self._batches.slices(step, rows)

    def __call__(self, step: int, rows: slice = slice(None)) -> Batch:
        """The batch of a step; starts to make the steps after it."""
        self._thread = self._thread or ThreadPoolExecutor(1, "charjax-read-ahead")
        which = (rows.start, rows.stop, rows.step)
        if (step, *which) not in self._ahead:  # the first call, or one out of order
            for future in self._ahead.values():
                future.cancel()
            self._ahead = {}
        for following in range(step, step + _STEPS):
            if (following, *which) not in self._ahead:
                made = self._thread.submit(self._batches, following, rows)
                self._ahead[following, *which] = made
        return self._ahead.pop((step, *which)).result()
