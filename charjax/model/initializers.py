"""Parameter initializers: charjax's, and the defaults of Keras and torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from charjax.config import ModelConfig
from charjax.types import PRNGKey

Initializer = Callable[..., Array]


class Initializers(NamedTuple):
    """One initializer, (key, shape, dtype) -> array, for each kind of parameter.

    Attributes:
      embedding: [vocab, embed].
      kernel: [features, gates], the input projection of a layer; also those that gate input and
        state of a mogrifier.
      bias: [gates], of the input projection.
      recurrent_kernel: [hidden, gates].
      recurrent_bias: [hidden], of the candidate's hidden gate (cells with `reset_after`).
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
    """The initializers that `config.init` names.

    * "orthogonal", charjax's default: an orthogonal recurrent matrix for each gate, and
      embeddings from N(0, 0.1^2), large enough for the gates to tell characters apart from
      the first step.
    * "keras": one orthonormal recurrent kernel for all gates together, so that with four gates
      each gate's matrix is half as large; embeddings uniform in [-0.05, 0.05].
    * "keras_glorot": the same with a Glorot-uniform recurrent kernel.
    * "torch": everything uniform within 1 / sqrt(hidden), except embeddings from N(0, 1).
      Where torch adds two biases, charjax has one.

    All are float32, also with `jax_enable_x64`.
    """
    return Initializers(*(partial(init, dtype=jnp.float32) for init in _named(config)))


def _named(config: ModelConfig) -> Initializers:
    """Those of `initializers`, whose default dtype is JAX's."""
    if config.init == "torch":
        uniform = _uniform(config.hidden**-0.5)
        return Initializers(nn.initializers.normal(1.0), *[uniform] * 6)
    glorot, zeros = nn.initializers.glorot_uniform(), nn.initializers.zeros
    recurrent_kernels: dict[str, Initializer] = {
        "orthogonal": _orthogonal_gates,
        "keras": nn.initializers.orthogonal(),
        "keras_glorot": glorot,
    }
    return Initializers(
        embedding=nn.initializers.normal(0.1) if config.init == "orthogonal" else _uniform(0.05),
        kernel=glorot,
        bias=_unit_forget_bias if config.cell in ("lstm", "mogrifier") else zeros,
        recurrent_kernel=recurrent_kernels[config.init],
        recurrent_bias=zeros,
        output_kernel=glorot,
        output_bias=zeros,
    )


def _uniform(bound: float) -> Initializer:
    return partial(jax.random.uniform, minval=-bound, maxval=bound)


def _orthogonal_gates(key: PRNGKey, shape: tuple[int, int], dtype: Any) -> Array:
    """[hidden, gates]: side by side, an independent orthogonal matrix for each gate."""
    hidden, gates = shape
    draw = partial(nn.initializers.orthogonal(), shape=(hidden, hidden), dtype=dtype)
    # Not by vmap: jaxlib divides a batch of QR decompositions among the threads of XLA's pool and
    # waits for them on such a thread. Those of two layers then wait for each other on two cores.
    return jnp.concatenate([draw(key) for key in jax.random.split(key, gates // hidden)], axis=1)


def _unit_forget_bias(key: PRNGKey, shape: tuple[int], dtype: Any) -> Array:
    """Zeros, but 1 for the LSTM's forget gate (Jozefowicz et al. 2015; Keras)."""
    del key
    quarter = shape[0] // 4
    return jnp.zeros(shape, dtype).at[quarter : 2 * quarter].set(1)
