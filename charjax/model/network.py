"""The network: embedding, layers of one cell, and the projection to logits.

    embed -> dropout_in -> [cell, dropout_between] x layers -> dropout -> dense

Parameters are float32. Inside, characters lie in columns, [features, time, batch],
which is how the products are fastest; at the border arrays are [batch, time, ...].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from charjax.config import ModelConfig
from charjax.errors import InputError
from charjax.model.cells import CELLS, Gates
from charjax.model.initializers import initializers
from charjax.model.matmul import dot, look_up, project
from charjax.model.recurrence.c.build import Kernels
from charjax.model.recurrence.xla import Outputs, Projected, Table, Weights, recur
from charjax.types import Carry, Fresh, LayerCarry, Logits, PRNGKey, PyTree, Tokens

LaneKeys = Key[Array, " batch"]
Columns = Float[Array, "features time batch"]


class RecurrentStep(nn.Module):
    """One time step with the parameters of the state's share; what `nn.scan` runs."""

    config: ModelConfig

    def setup(self) -> None:
        """Declares the parameters."""
        cell, hidden, init = CELLS[self.config.cell], self.config.hidden, initializers(self.config)
        self.kernel = self.param("kernel", init.recurrent_kernel, (hidden, cell.gates * hidden))
        self.bias = self.param("bias", init.recurrent_bias, (hidden,)) if cell.two_shares else None

    def weights(self) -> Weights:
        """The parameters, for the fast recurrence."""
        return Weights(self.kernel, self.bias)

    def __call__(
        self, carry: LayerCarry, x: Float[Array, "batch gates"]
    ) -> tuple[LayerCarry, Float[Array, "batch hidden"]]:
        """Advances the carry by one character, given the input's share of the gates."""
        cell = CELLS[self.config.cell]

        def split(rows: Float[Array, "batch gates"]) -> Gates:
            return tuple(jnp.split(rows, cell.gates, axis=1))

        u = split(dot(carry[0], self.kernel, jnp.dtype(self.config.dtype)))
        if self.bias is not None:
            u = (*u[:-1], u[-1] + self.bias[None])
        carry, _ = cell.forward(split(x), u, carry)
        return carry, carry[0]


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
        share = _with_bias(project(kernel, inputs, dtype), bias)
        step = RecurrentStep(c, name="recurrent")

        source = Projected(share) if tokens is None else Table(share, tokens)
        if c.recurrence == "persistent" and not self.is_initializing():
            from charjax.model import ops  # with all of Pallas, which others do not need

            machine = ops.machine(dtype, carry[0].shape[0])
            return ops.recur(c.cell, machine, source, step.weights(), carry)
        if c.recurrence != "scan":
            kernels = ops.kernels_for(dtype) if c.recurrence == "fast" else None
            if isinstance(kernels, Kernels):
                return ops.recur(c.cell, kernels, dtype, source, step.weights(), carry)
            return recur(c.cell, dtype, source, step.weights(), carry)

        scan: Callable[..., tuple[LayerCarry, Float[Array, "time batch hidden"]]] = nn.scan(
            RecurrentStep.__call__, variable_broadcast="params", split_rngs={"params": False}
        )
        rows = jnp.moveaxis(share if tokens is None else share[:, tokens], 0, -1)
        last, outputs = scan(step, carry, rows)
        return jnp.moveaxis(outputs, -1, 0), last


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
        dropout_keys: LaneKeys | None = None,
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
            of which `charjax.runtime.dtypes.settle` makes one.
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
        dropout_keys: LaneKeys | None = None,
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
        return drop(look_up(table, tokens), c.dropout_in), None


class _Dropout:
    """Dropout with one mask a lane for all its characters (Gal and Ghahramani 2016)."""

    def __init__(self, keys: LaneKeys | None) -> None:
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


def portable(config: ModelConfig) -> ModelConfig:
    """The config of the same network for what is no training: any device, any batch."""
    return replace(config, recurrence="fast") if config.recurrence == "persistent" else config


def initial_carry(config: ModelConfig, batch: int) -> Carry:
    """The carry before any text: float32 zeros, every buffer its own."""
    states = CELLS[config.cell].states
    return tuple(
        tuple(jnp.zeros((batch, config.hidden), jnp.float32) for _ in range(states))
        for _ in range(config.layers)
    )


def restart(carry: Carry, fresh: Fresh) -> Carry:
    """The carry with zeros in the lanes that begin anew."""
    cleared: Carry = jax.tree.map(lambda c: jnp.where(fresh[:, None], 0.0, c), carry)
    return cleared


@functools.partial(jax.jit, static_argnums=(0, 1))
def init_params(config: ModelConfig, vocab_size: int, key: PRNGKey) -> PyTree:
    """Fresh parameters, drawn as `model.init` says."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return CharRNN(config, vocab_size).init(key, tokens, initial_carry(config, 1))["params"]


def parameter_count(params: PyTree) -> int:
    """How many numbers a parameter tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
