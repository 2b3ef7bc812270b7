"""One recurrent layer over a sequence: the projection of its input, then the recurrence."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from charjax.config import ModelConfig
from charjax.model.cells import CELLS
from charjax.model.initializers import initializers
from charjax.model.matmul import dense
from charjax.model.mogrifier import Mogrifier
from charjax.model.recurrence import api as recurrence
from charjax.model.recurrence.base import Inputs, LayerResets, Operands, Result, Weights
from charjax.types import LayerCarry


class RecurrentWeights(nn.Module):
    """The recurrent parameters of one layer, in a separate scope of the params tree."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> Weights:
        """Declares and returns the parameters."""
        cell, hidden, init = CELLS[self.config.cell], self.config.hidden, initializers(self.config)
        if not cell.has_recurrent_kernel:
            return Weights(jnp.zeros((hidden, 0)), None)
        kernel = self.param("kernel", init.recurrent_kernel, (hidden, cell.gates * hidden))
        bias = self.param("bias", init.recurrent_bias, (hidden,)) if cell.reset_after else None
        return Weights(kernel, bias)


class RecurrentLayer(nn.Module):
    """One recurrent layer over a sequence."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, " features *positions"],
        tokens: Int[Array, "time batch"] | None,
        carry: LayerCarry,
        resets: LayerResets | None = None,
    ) -> Result:
        """Runs the layer.

        Args:
          inputs: [features, time, batch]; or, with `tokens`, [features, vocab], one column
            per token of the vocabulary.
          tokens: int32 [time, batch], the column of `inputs` at each position; or None.
          carry: the layer's state before the first position.
          resets: bool [time, batch], the positions before which the state is set to zero.

        Returns:
          The outputs [hidden, time, batch] and the state after the last position.
        """
        c = self.config
        dtype, gates = jnp.dtype(c.dtype), CELLS[c.cell].gates * c.hidden
        kernel = self.param("kernel", initializers(c).kernel, (inputs.shape[0], gates))
        bias = self.param("bias", initializers(c).bias, (gates,))
        weights = RecurrentWeights(c, name="recurrent")()
        if CELLS[c.cell].rounds:  # the recurrence projects the input
            igates = inputs
            weights = weights._replace(mogrifier=Mogrifier(self._rounds(inputs), kernel, bias))
        else:
            igates = dense(kernel, bias, inputs, dtype)
        chosen = recurrence.resolve(c, carry[0].shape[0], strict=not self.is_initializing())
        operands = Operands(Inputs(igates, tokens), weights, carry, resets)
        return recurrence.run(chosen.implementation, c.cell, dtype, operands)

    def _rounds(self, inputs: Float[Array, " features *positions"]) -> tuple[Array, ...]:
        """The kernels of a mogrifier's rounds."""
        init, hidden, features = initializers(self.config).kernel, self.config.hidden, len(inputs)
        shapes = (hidden, features), (features, hidden)  # gating the input, gating the state
        return tuple(
            self.param(f"round_{number}_kernel", init, shapes[number % 2])
            for number in range(CELLS[self.config.cell].rounds)
        )
