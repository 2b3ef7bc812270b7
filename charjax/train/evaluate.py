"""Evaluation of a state on a whole split."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int

from charjax.config import ModelConfig
from charjax.inference.evaluate import score
from charjax.types import PyTree


def evaluate(config: ModelConfig, params: PyTree, ids: Int[np.ndarray, " chars"]) -> dict[str, Any]:
    """The loss on every character of a split; see `charjax.inference.score`.

    Returns:
      `val_loss` in nats and `val_bpc` in bits per character; nothing for a split that
      predicts no character.
    """
    if ids.size < 2:
        return {}
    result = score(config, params, ids)
    return {"val_loss": result.nats_per_char, "val_bpc": result.bits_per_char}
