"""The network: embedding, layers of one cell, and the projection to logits.

    embed -> dropout_in -> [cell, dropout_between] x layers -> dropout -> dense

Parameters are float32. Inside, characters lie in columns, [features, time, batch],
which is how the products are fastest; at the border arrays are [batch, time, ...].
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from charjax.config import ModelConfig
from charjax.errors import InputError
from charjax.model.cells import CELLS
from charjax.model.initializers import initializers
from charjax.model.matmul import lookup, project
from charjax.model.recurrence import api as recurrence
from charjax.model.recurrence.base import Outputs, Projected, Table, Weights
from charjax.types import Carry, LayerCarry, Logits, PRNGKey, PyTree, Reset, Tokens

RowKeys = Key[Array, " batch"]
Columns = Float[Array, "features time batch"]


class RecurrentWeights(nn.Module):
    """The recurrent parameters of one layer."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> Weights:
        """Declares and returns them."""
        cell, hidden, init = CELLS[self.config.cell], self.config.hidden, initializers(self.config)
        kernel = self.param("kernel", init.recurrent_kernel, (hidden, cell.gates * hidden))
        bias = self.param("bias", init.recurrent_bias, (hidden,)) if cell.reset_after else None
        return Weights(kernel, bias)


class RecurrentLayer(nn.Module):
    """One layer over a sequence: the projection of its input, then the recurrence."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, inputs: Float[Array, " features *positions"], tokens: Array | None, carry: LayerCarry
    ) -> tuple[Outputs, LayerCarry]:
        """Runs the layer.

        Args:
          inputs: [features, vocab] with `tokens`, which then select the columns; else
            [features, time, batch].
          tokens: int32 [time, batch], or None.
          carry: the layer's state before the first character.

        Returns:
          The outputs [hidden, time, batch] and the state after the last character.
        """
        c = self.config
        dtype, gates = jnp.dtype(c.dtype), CELLS[c.cell].gates * c.hidden
        kernel = self.param("kernel", initializers(c).kernel, (inputs.shape[0], gates))
        bias = self.param("bias", initializers(c).bias, (gates,))
        igates = _with_bias(project(kernel, inputs, dtype), bias)
        weights = RecurrentWeights(c, name="recurrent")()
        chosen = recurrence.resolve(c, carry[0].shape[0], strict=not self.is_initializing())
        return recurrence.run(
            chosen.implementation,
            c.cell,
            dtype,
            Projected(igates) if tokens is None else Table(igates, tokens),
            weights,
            carry,
        )


class CharRNN(nn.Module):
    """Characters in, logits of the next character out.

    Attributes:
      config: the architecture.
      vocab_size: number of symbols.
    """

    config: ModelConfig
    vocab_size: int

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        carry: Carry,
        dropout_keys: RowKeys | None = None,
        *,
        last_only: bool = False,
    ) -> tuple[Float[Array, "batch predicted vocab"], Carry]:
        """Runs the network over a chunk of characters.

        Args:
          tokens: ids of the characters, integer [batch, time].
          carry: the state before the first character, see `initial_carry`.
          dropout_keys: one key a lane; each lane's masks are a function of its key
            alone, and the same for all its characters. None: no dropout.
          last_only: return the logits after the last character only, [batch, 1, vocab].

        Returns:
          Float32 logits [batch, time, vocab] and the carry after the last character.

        Raises:
          InputError: a dtype of "int8", which only `charjax.model.decode` reads, or of "auto",
            of which `charjax.runtime.dtypes.resolve_dtype` makes one.
        """
        c = self.config
        if c.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype={c.dtype}: nothing to train in; take float32 or bfloat16")
        dtype = jnp.dtype(c.dtype)
        drop = _Dropout(dropout_keys)
        inputs, selected = self._embed(tokens.T, drop)
        states = []
        for layer in range(c.layers):
            recurrent = RecurrentLayer(c, name=f"layer_{layer}")
            outputs, state = recurrent(inputs, selected, carry[layer])
            states.append(state)
            last = layer == c.layers - 1
            if last and last_only:  # the state is that output, and no other need be kept
                outputs = state[0].T[:, None]
            outputs = drop(outputs, c.dropout if last else c.dropout_between)
            inputs, selected = outputs, None
        init = initializers(c)
        kernel = self.param("output_kernel", init.output_kernel, (c.hidden, self.vocab_size))
        bias = self.param("output_bias", init.output_bias, (self.vocab_size,))
        logits = _with_bias(project(kernel, inputs, dtype), bias)
        return logits.transpose(2, 1, 0), tuple(states)

    def run(
        self,
        params: PyTree,
        tokens: Tokens,
        carry: Carry,
        dropout_keys: RowKeys | None = None,
        *,
        last_only: bool = False,
    ) -> tuple[Float[Array, "batch predicted vocab"], Carry]:
        """`__call__` as a pure function of the parameters."""
        outputs: tuple[Logits, Carry] = self.apply(  # type: ignore[assignment]
            {"params": params}, tokens, carry, dropout_keys, last_only=last_only
        )
        return outputs

    def _embed(
        self, tokens: Int[Array, "time batch"], drop: _Dropout
    ) -> tuple[Float[Array, " features *positions"], Array | None]:
        """The first layer's input: a table and its look-ups, or one column a character."""
        c = self.config
        if c.embed == 0:
            table = jnp.eye(self.vocab_size, dtype=jnp.float32)
        else:
            table = self.param("embedding", initializers(c).embedding, (self.vocab_size, c.embed)).T
        if not drop.active(c.dropout_in):
            return table, tokens
        return drop(lookup(table, tokens), c.dropout_in), None


class _Dropout:
    """Dropout with one mask a lane for all its characters (Gal and Ghahramani 2016)."""

    def __init__(self, keys: RowKeys | None) -> None:
        self._keys = keys
        self._sites = 0

    def active(self, rate: float) -> bool:
        return self._keys is not None and rate > 0

    def __call__(self, x: Columns, rate: float) -> Array:
        if self._keys is None or rate == 0:
            return x
        self._sites += 1
        site, features = self._sites, x.shape[0]

        def mask(key: PRNGKey) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, site), 1 - rate, (features,))

        return jnp.where(jax.vmap(mask, out_axes=1)(self._keys)[:, None], x / (1 - rate), 0.0)


def _with_bias(columns: Float[Array, " n *positions"], bias: Float[Array, " n"]) -> Array:
    return columns + jnp.expand_dims(bias, tuple(range(1, columns.ndim)))


def initial_carry(config: ModelConfig, batch: int) -> Carry:
    """The carry before any text: float32 zeros, every buffer its own."""
    states = CELLS[config.cell].states
    return tuple(
        tuple(jnp.zeros((batch, config.hidden), jnp.float32) for _ in range(states))
        for _ in range(config.layers)
    )


def reset_carry(carry: Carry, reset: Reset) -> Carry:
    """The carry with zeros in the lanes that begin anew."""
    cleared: Carry = jax.tree.map(lambda c: jnp.where(reset[:, None], 0.0, c), carry)
    return cleared


@functools.partial(jax.jit, static_argnums=(0, 1))
def init_params(config: ModelConfig, vocab_size: int, key: PRNGKey) -> PyTree:
    """Fresh parameters, drawn as `model.init` says."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return CharRNN(config, vocab_size).init(key, tokens, initial_carry(config, 1))["params"]


def parameter_count(params: PyTree) -> int:
    """How many numbers a parameter tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
