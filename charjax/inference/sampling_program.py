"""What the sampling loop is compiled for, and whether it is one persistent kernel."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

from charjax.config import ModelConfig
from charjax.inference.row_controls import Enabled
from charjax.model.recurrence.api import resolve


class Program(NamedTuple):
    """What the loop is compiled for.

    Attributes:
      config: the architecture.
      enabled: the controls of its rows.
      max_copy: characters of the passages of its `CopyTable`; 0: it has none.
    """

    config: ModelConfig
    enabled: Enabled
    max_copy: int = 0

    def is_persistent(self, vocab_size: int, batch: int) -> bool:
        """Whether the loop over a batch of a size is one persistent kernel on this GPU."""
        enabled = Enabled(bias=self.enabled.bias)  # what the kernel knows
        return (
            self.enabled == enabled
            and not self.max_copy
            and has_persistent_loop(self.config, vocab_size, batch)
        )


def has_persistent_loop(config: ModelConfig, vocab_size: int, batch: int) -> bool:
    """Whether the loop of programs with few controls is a persistent kernel on this GPU."""
    if resolve(config, batch, strict=False).implementation != "persistent":
        return False
    fits: bool = persistent_kernel().fits(config, vocab_size, batch)
    return fits


def persistent_kernel() -> ModuleType:
    """The module `charjax.model.recurrence.pallas_hopper.decode`."""
    # Imported on first use, since Pallas loads slowly.
    return importlib.import_module("charjax.model.recurrence.pallas_hopper.decode")
