"""CharRNN, the network: embedding, recurrent layers of one cell, projection to logits.

    embed -> dropout_in -> [cell, dropout_between] x layers -> dropout -> dense

Parameters are float32. Arguments and results are batch-major, [batch, time, ...]; inside,
activations are feature-major, [features, time, batch], in which matmuls run fastest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from charjax.config import ModelConfig, check_model_limits
from charjax.errors import InputError
from charjax.model.carry import initial_carry
from charjax.model.cells import CELLS
from charjax.model.initializers import initializers
from charjax.model.layer import RecurrentLayer
from charjax.model.matmul import dense, lookup
from charjax.model.shapes import check_params
from charjax.runtime.dtypes import as_float32, check_resolved
from charjax.schema import check_integer
from charjax.types import Carry, PRNGKey, PyTree, Resets, Tokens

RowKeys = Key[Array, " batch"]
# (output kernel, bias, outputs of the last layer [hidden, time, batch], dtype of the operands) ->
# [*features, time, batch]
Head: TypeAlias = Callable[[Array, Array, Array, DTypeLike], Array]


class CharRNN(nn.Module):
    """A character-level recurrent language model: tokens in, logits of the next token out.

    Attributes:
      config: the architecture.
      vocab_size: number of tokens.
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
        resets: Resets | None = None,
        last_only: bool = False,
        head: Head = dense,
    ) -> tuple[Float[Array, "batch predicted *vocab"], Carry]:
        """Runs the network over a chunk of text.

        Args:
          tokens: token ids, integer [batch, time], from 0 to `vocab_size` - 1, which is not
            checked: XLA and the C loops take the nearest one for others.
          carry: the state before the first token, see `initial_carry`.
          dropout_keys: one key per sequence, which alone determines its masks; None: no
            dropout.
          resets: the positions before which the carry of all layers is set to zero, see
            `document_resets`; None: nowhere.
          last_only: return the logits after the last token only, [batch, 1, vocab].
          head: what is computed from the outputs of the last layer; by default the logits.

        Returns:
          What `head` computes, batch-major: by default float32 logits [batch, time, vocab]; and the
          carry after the last token.

        Raises:
          InputError: the tokens are not integers; shapes do not fit together; config.dtype is
            "int8", which only `charjax.model.decode` runs, or "auto", which
            `charjax.resolve_dtype` resolves.
        """
        c = self.config
        check_resolved(c)
        if c.dtype == "int8":
            raise InputError("dtype=int8: not a dtype to train in; take float32 or bfloat16")
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise InputError(f"tokens of dtype {tokens.dtype}: must be integers")
        _check_shapes(c, tokens, carry, dropout_keys, resets)
        tokens = jnp.asarray(tokens, jnp.int32)
        dropout = _Dropout(dropout_keys)
        inputs, table_tokens = self._embed(tokens.T, dropout)
        layer_resets = None if resets is None else resets.T
        last_carry = []
        for layer in range(c.layers):
            recurrent = RecurrentLayer(c, name=f"layer_{layer}")
            outputs, state = recurrent(inputs, table_tokens, carry[layer], layer_resets)
            last_carry.append(state)
            is_last = layer == c.layers - 1
            if is_last and last_only:  # the state is the last output; no other is stored
                outputs = state[0].T[:, None]
            outputs = dropout(outputs, c.dropout if is_last else c.dropout_between)
            inputs, table_tokens = outputs, None
        init = initializers(c)
        kernel = self.param("output_kernel", init.output_kernel, (c.hidden, self.vocab_size))
        bias = self.param("output_bias", init.output_bias, (self.vocab_size,))
        return head(kernel, bias, inputs, jnp.dtype(c.dtype)).T, tuple(last_carry)

    def run(
        self,
        params: PyTree,
        tokens: Tokens,
        carry: Carry,
        dropout_keys: RowKeys | None = None,
        *,
        resets: Resets | None = None,
        last_only: bool = False,
        head: Head = dense,
    ) -> tuple[Float[Array, "batch predicted *vocab"], Carry]:
        """`__call__` as a pure function of the parameters.

        Parameters and carry may be numpy arrays, and of another floating dtype: they are cast to
        float32. Derivatives are those of reverse mode (`jax.grad`, `jax.vjp`); those of second
        order need `config.recurrence="scan"`.

        Raises:
          InputError: as `__call__`, or the parameters are not those of such a network.
        """
        check_params(self.config, params, self.vocab_size)
        params, carry = as_float32((params, carry))
        outputs: tuple[Array, Carry] = self.apply(  # type: ignore[assignment]
            {"params": params},
            tokens,
            carry,
            dropout_keys,
            resets=resets,
            last_only=last_only,
            head=head,
        )
        return outputs

    def _embed(
        self, tokens: Int[Array, "time batch"], dropout: _Dropout
    ) -> tuple[Float[Array, " features *positions"], Int[Array, "time batch"] | None]:
        """The first layer's arguments `inputs` and `tokens`, see `RecurrentLayer`."""
        c = self.config
        if c.embed == 0:
            table = jnp.eye(self.vocab_size, dtype=jnp.float32)
        else:
            table = self.param("embedding", initializers(c).embedding, (self.vocab_size, c.embed)).T
        if not dropout.is_active(c.dropout_in):
            return table, tokens
        return dropout(lookup(table, tokens), c.dropout_in), None


class _Dropout:
    """Variational dropout: one mask per sequence and site, the same at all time steps.

    Gal and Ghahramani 2016 (arXiv:1512.05287), on the inputs and outputs of layers; the
    recurrent connections have none.
    """

    def __init__(self, keys: RowKeys | None) -> None:
        self._keys = keys
        self._sites = 0  # sites so far; each folds its number into the keys

    def is_active(self, rate: float) -> bool:
        """Whether dropout of this rate changes anything."""
        return self._keys is not None and rate > 0

    def __call__(self, x: Float[Array, "features time batch"], rate: float) -> Array:
        if self._keys is None or rate == 0:
            return x
        self._sites += 1
        site, features = self._sites, x.shape[0]

        def mask(key: PRNGKey) -> Array:
            kept = jnp.float32(1 - rate)  # so that jax_enable_x64 changes no draw
            return jax.random.bernoulli(jax.random.fold_in(key, site), kept, (features,))

        return jnp.where(jax.vmap(mask, out_axes=1)(self._keys)[:, None], x / (1 - rate), 0.0)


def _check_shapes(
    config: ModelConfig,
    tokens: Tokens,
    carry: Carry,
    dropout_keys: RowKeys | None,
    resets: Resets | None,
) -> None:
    """Raises InputError for arguments of `CharRNN` whose shapes do not fit together.

    XLA would broadcast some of them, and nothing would read a carry's further layers.
    """
    if tokens.ndim != 2:
        raise InputError(f"tokens of shape {tokens.shape}: must be [batch, time]")
    batch, states = tokens.shape[0], CELLS[config.cell].states * config.layers
    shapes = [leaf.shape for leaf in jax.tree.leaves(carry)]
    if shapes != [(batch, config.hidden)] * states:
        raise InputError(
            f"carry of shapes {shapes}: must be {states} x {(batch, config.hidden)}, as from "
            f"initial_carry(config, {batch})"
        )
    if resets is not None and resets.shape != tokens.shape:
        raise InputError(f"resets of shape {resets.shape}: must be {tokens.shape}, as the tokens")
    if dropout_keys is not None and dropout_keys.shape[:1] != (batch,):
        raise InputError(
            f"dropout_keys of shape {dropout_keys.shape}: must be {batch}, one for each sequence"
        )


def architecture(config: ModelConfig) -> ModelConfig:
    """The fields that parameters and carries depend on, the others at their defaults.

    What is compiled for it serves all configs that differ in dropout and the like.
    """
    fields = ("cell", "hidden", "layers", "embed", "init", "dtype")
    return ModelConfig(**{name: getattr(config, name) for name in fields})


def init_params(config: ModelConfig, vocab_size: int, key: PRNGKey) -> PyTree:
    """Initial parameters, float32, drawn by `charjax.model.initializers`.

    Raises:
      InputError: a field of the config is outside its limits, or there are no tokens.
    """
    check_model_limits(config)
    vocab_size = check_integer("vocab_size", vocab_size, 1)
    return _init_params(architecture(config), vocab_size, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init_params(config: ModelConfig, vocab_size: int, key: PRNGKey) -> PyTree:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return CharRNN(config, vocab_size).init(key, tokens, initial_carry(config, 1))["params"]


def parameter_count(params: PyTree) -> int:
    """Number of scalars in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
