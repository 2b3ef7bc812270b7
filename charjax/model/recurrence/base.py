"""The interface that every implementation of the recurrence has.

An implementation is a module with two functions:

    supports(layer: Layer) -> str
        Why it cannot run this layer on these devices, in a few words; "" if it can.
    run(cell: str, dtype: DTypeLike, operands: Operands) -> Result
        Runs the layer over a sequence; differentiable in the inputs, weights and carry of
        the operands. `charjax.model.recurrence.api.run` describes the arguments, and calls it
        only for at least one position. Without resets it compiles to the program of a layer that
        has none.

Inputs and outputs are feature-major, [features, time, batch]; a carry is batch-major,
[batch, hidden].
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from charjax.model.matmul import int_cotangent
from charjax.model.mogrifier import Mogrifier
from charjax.types import LayerCarry

Outputs: TypeAlias = Float[Array, "hidden time batch"]
# The outputs and the carry after the last position.
Result: TypeAlias = tuple[Outputs, LayerCarry]
# Where the carry before a position is zero. No gradient flows through a reset.
LayerResets: TypeAlias = Bool[Array, "time batch"]


class Layer(NamedTuple):
    """What decides whether an implementation supports a layer.

    Attributes:
      cell: a name in `charjax.model.cells.CELLS`.
      hidden: number of units.
      dtype: of the matmul operands, "float32" or "bfloat16".
      batch: number of sequences on each device.
    """

    cell: str
    hidden: int
    dtype: str
    batch: int


class Inputs(NamedTuple):
    """The input gates of every position, or a table of those of every token.

    Attributes:
      igates: float32 [gates, time, batch], the projected input plus its bias; with tokens
        [gates, vocab], the projected tokens plus their bias. With `Mogrifier` weights the input or
        the tokens themselves.
      tokens: int32 [time, batch], the column of `igates` for each position; None: no table.
    """

    igates: Float[Array, " gates *positions"]
    tokens: Int[Array, "time batch"] | None = None

    @property
    def time_and_batch(self) -> tuple[int, int]:
        """The numbers of time steps and sequences."""
        time, batch = (self.igates if self.tokens is None else self.tokens).shape[-2:]
        return time, batch

    def cotangent(
        self, d_hgates: Float[Array, " gates *_"], d_candidate: Float[Array, " hidden *_"] | None
    ) -> Inputs:
        """The gradient of the inputs.

        Args:
          d_hgates: gradient of the hidden gates. That of `igates` is the same, except for the
            candidate of a cell with `reset_after`.
          d_candidate: gradient of that candidate's input gate; None for other cells.
        """
        if d_candidate is not None:
            d_hgates = jnp.concatenate([d_hgates[: -len(d_candidate)], d_candidate])
        d_tokens: Any = None if self.tokens is None else int_cotangent(self.tokens)
        return Inputs(d_hgates.astype(jnp.float32), d_tokens)


class Weights(NamedTuple):
    """One layer's recurrent parameters, float32.

    Attributes:
      kernel: [hidden, gates]; [hidden, 0] for a cell without a recurrent kernel.
      bias: [hidden], added to the candidate's hidden gate; None for a cell without
        `reset_after`.
      mogrifier: what gates and projects the input inside the recurrence; None for other cells.
    """

    kernel: Float[Array, "hidden gates"]
    bias: Float[Array, " hidden"] | None
    mogrifier: Mogrifier | None = None


class Operands(NamedTuple):
    """What a layer reads.

    Attributes:
      inputs: the input gates.
      weights: the recurrent parameters.
      carry: the state before the first position, float32 [batch, hidden] each.
      resets: bool [time, batch], the positions before which the carry is set to zero, as
        where a document starts; None: nowhere.
    """

    inputs: Inputs
    weights: Weights
    carry: LayerCarry
    resets: LayerResets | None = None


def transposed(carry: tuple[Array, ...]) -> Any:
    """A carry in the other of its two layouts, batch-major and feature-major."""
    return tuple(state.T for state in carry)
