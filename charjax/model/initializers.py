"""The weights that a network starts from, by the name of whose custom they follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from charjax.config import ModelConfig
from charjax.types import PRNGKey

Initializer = Callable[..., Array]


class Initializers(NamedTuple):
    """One initializer, (key, shape) -> float32, for each kind of parameter.

    Attributes:
      embedding: [vocab, embed].
      kernel: the input's [features, gates].
      bias: the input's [gates].
      recurrent_kernel: the state's [hidden, gates].
      recurrent_bias: the state's [hidden], of cells that have one.
      output_kernel: [hidden, vocab].
      output_bias: [vocab].
    """

    embedding: Initializer
    kernel: Initializer
    bias: Initializer
    recurrent_kernel: Initializer
    recurrent_bias: Initializer
    output_kernel: Initializer
    output_bias: Initializer


def initializers(config: ModelConfig) -> Initializers:
    """The initializers that `model.init` names.

    `orthogonal` is charjax's own: an orthogonal recurrent block for each gate, and an
    embedding large enough for the gates to tell characters apart from the first step.
    `keras` draws one orthonormal recurrent kernel for all gates together, whose blocks
    are half as large for four gates, and a small uniform embedding; `keras_glorot` is
    the same with a Glorot-uniform recurrent kernel. `torch` draws everything uniformly
    within 1/sqrt(hidden); the two biases that torch adds up are one here.
    """
    if config.init == "torch":
        within = _uniform(config.hidden**-0.5)
        return Initializers(nn.initializers.normal(1.0), *[within] * 6)
    glorot, zeros = nn.initializers.glorot_uniform(), nn.initializers.zeros
    recurrent: dict[str, Initializer] = {
        "orthogonal": _orthogonal_gates,
        "keras": nn.initializers.orthogonal(),
        "keras_glorot": glorot,
    }
    own = config.init == "orthogonal"
    return Initializers(
        embedding=nn.initializers.normal(0.1) if own else _uniform(0.05),
        kernel=glorot,
        bias=_forget_less if config.cell == "lstm" else zeros,
        recurrent_kernel=recurrent[config.init],
        recurrent_bias=zeros,
        output_kernel=glorot,
        output_bias=zeros,
    )


def _uniform(bound: float) -> Initializer:
    def init(key: PRNGKey, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _orthogonal_gates(key: PRNGKey, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """An orthogonal matrix for each gate's block of columns."""
    hidden, gates = shape
    blocks = jax.random.split(key, gates // hidden)
    init = nn.initializers.orthogonal()
    return jnp.concatenate([init(k, (hidden, hidden), dtype) for k in blocks], axis=1)


def _forget_less(key: PRNGKey, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
    """Zeros, but 1 for the LSTM's forget gate (Jozefowicz et al. 2015), as Keras does."""
    del key
    quarter = shape[0] // 4
    return jnp.zeros(shape, dtype).at[quarter : 2 * quarter].set(1)
