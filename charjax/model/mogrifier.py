"""The mogrifier: before each step of an LSTM, its input and its state gate each other in turn.

    x1 = 2 sigmoid(h0 R1) * x0,  h2 = 2 sigmoid(x1 R2) * h0,  x3 = 2 sigmoid(h2 R3) * x1, ...

The gates of the LSTM read the last x and h; its cell state is not touched. Melis, Kocisky and
Blunsom 2020 (arXiv:1909.01792), with kernels of full rank. The input gates depend on the state, so
that no matmul of the input can be done before the recurrence.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from charjax.model.matmul import dot
from charjax.types import PyTree


class Mogrifier(NamedTuple):
    """The parameters of a mogrifier layer but for its recurrent kernel, float32.

    Attributes:
      rounds: the kernels of the rounds in turn: [hidden, features], which gates the input, then
        [features, hidden], which gates the state, and so on.
      kernel: [features, gates], of the gated input.
      bias: [gates].
    """

    rounds: tuple[Float[Array, "_ _"], ...]
    kernel: Float[Array, "features gates"]
    bias: Float[Array, " gates"]

    @classmethod
    def of(cls, layer: PyTree) -> Mogrifier:
        """Takes them from the parameters of one layer."""
        names = sorted(name for name in layer if name.startswith("round_"))
        return cls(tuple(layer[name] for name in names), layer["kernel"], layer["bias"])

    def gate(
        self, x: Float[Array, "batch features"], h: Float[Array, "batch hidden"], dtype: DTypeLike
    ) -> tuple[Float[Array, "batch gates"], Float[Array, "batch hidden"]]:
        """The input gates of one time step, and the state that its hidden gates read.

        Args:
          x: the input.
          h: the output of the step before.
          dtype: of the matmul operands.
        """
        for number, kernel in enumerate(self.rounds):
            if number % 2 == 0:
                x = 2 * jax.nn.sigmoid(dot(h, kernel, dtype)) * x
            else:
                h = 2 * jax.nn.sigmoid(dot(x, kernel, dtype)) * h
        return dot(x, self.kernel, dtype) + self.bias[None], h
