"""The model and batch that are measured, the same for every peer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model and its batch; the defaults are the reference shape.

    Attributes:
      cell: gru or lstm.
      hidden: units per layer.
      embed: embedding width.
      layers: number of recurrent layers.
      batch: sequences per step.
      length: characters per sequence and step.
      vocab: vocabulary size.
    """

    cell: str = "gru"
    hidden: int = 1024
    embed: int = 256
    layers: int = 1
    batch: int = 64
    length: int = 100
    vocab: int = 65

    @property
    def chars(self) -> int:
        """Characters per training step."""
        return self.batch * self.length

    @property
    def flops(self) -> int:
        """Floating-point operations of the matmuls that a training step cannot avoid.

        Forward and twice backward: recurrent kernels, input kernels between layers, logits.
        The first layer's input is a table look-up, which does not count.
        """
        gates = {"gru": 3, "lstm": 4}[self.cell] * self.hidden
        kernels = (2 * self.layers - 1) * self.hidden * gates + self.hidden * self.vocab
        return 3 * 2 * self.chars * kernels


def make_shape(*, small: bool, **fields: int | str) -> Shape:
    """The reference shape with some fields changed; `small` is for trying out a benchmark."""
    sizes = {"hidden": 32, "embed": 8, "batch": 4, "length": 10} if small else {}
    return Shape(**sizes | fields)  # type: ignore[arg-type]


def batch(shape: Shape, steps: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs and targets, int32 [steps, batch, length]; the same for every peer."""
    text = np.random.default_rng(0).integers(
        0, shape.vocab, (steps, shape.batch, shape.length + 1), np.int32
    )
    return text[..., :-1], text[..., 1:]
