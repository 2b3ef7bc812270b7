"""What the tests of this room share: random trees, and how far two trees are apart."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from charjax.config import ModelConfig
from charjax.model.network import CharRNN, init_params, initial_carry


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def like(tree, seed, scale=1.0):
    """Random numbers in the structure of a tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape), jnp.float32), tree)


def params_of(config: ModelConfig, vocab_size: int):
    """Parameters none of which is zero, or all alike, as a fresh bias is."""
    shapes = jax.eval_shape(lambda: init_params(config, vocab_size, jax.random.key(0)))
    return like(shapes, 5, 0.5)


def carry_of(config: ModelConfig, batch: int):
    """A carry as if text had been read."""
    return like(initial_carry(config, batch), 7, 0.5)


def tokens_of(vocab_size: int, batch: int, time: int):
    return jnp.asarray(np.random.default_rng(11).integers(0, vocab_size, (batch, time)), jnp.int32)


def float64(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


# Half the time to compile, which is all the time that these small shapes take.
UNOPTIMIZED = {"xla_backend_optimization_level": 0}


@partial(jax.jit, static_argnums=0, static_argnames="last_only", compiler_options=UNOPTIMIZED)
def apply(config, params, tokens, carry, keys=None, last_only=False):
    """The network, compiled once a config and shape."""
    network = CharRNN(config, params["output_bias"].shape[0])
    return network.run(params, tokens, carry, keys, last_only=last_only)


def distance(got, want):
    """The largest difference in any leaf, relative to that leaf's largest entry."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    pairs = zip(jax.tree.leaves(float64(got)), jax.tree.leaves(float64(want)), strict=True)
    return max(np.abs(g - w).max() / (np.abs(w).max() + 1e-30) for g, w in pairs)
