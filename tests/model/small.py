"""Helpers of the model's tests: small random inputs, and the distance of two pytrees."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from charjax.config import ModelConfig
from charjax.model.carry import initial_carry
from charjax.model.network import CharRNN
from charjax.model.shapes import param_shapes as shapes_by_path


def array(values, dtype=np.float32):
    """An array of a device; `jnp.asarray` compiles a program for each shape."""
    return jax.device_put(np.asarray(values, dtype))


def normal(seed, *shape):
    return array(np.random.default_rng(seed).normal(size=shape))


def like(tree, seed, scale=1.0):
    """A tree of random numbers, of the structure and shapes of `tree`."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: array(scale * rng.normal(size=a.shape)), tree)


def params_of(config: ModelConfig, vocab_size: int):
    """Random parameters; unlike initial ones they have no biases that are all zero."""
    return like(param_shapes(config, vocab_size), 5, 0.5)


def param_shapes(config: ModelConfig, vocab_size: int):
    """The tree of the parameters' shapes."""
    shapes = shapes_by_path(config, vocab_size)
    structs = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    return unflatten_dict(structs, sep="/")


def carry_of(config: ModelConfig, batch: int):
    """A random carry, as after some text."""
    return like(jax.eval_shape(lambda: initial_carry(config, batch)), 7, 0.5)


def tokens_of(vocab_size: int, batch: int, time: int):
    return array(np.random.default_rng(11).integers(0, vocab_size, (batch, time)), np.int32)


def float64(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


# Halves the time to compile, which is most of the time of tests on small shapes.
UNOPTIMIZED = {"xla_backend_optimization_level": 0}


@partial(jax.jit, static_argnums=0, static_argnames="last_only", compiler_options=UNOPTIMIZED)
def apply(config, params, tokens, carry, keys=None, *, resets=None, last_only=False):
    """`CharRNN.run`, compiled once for each config and shape."""
    network = CharRNN(config, params["output_bias"].shape[0])
    return network.run(params, tokens, carry, keys, resets=resets, last_only=last_only)


def distance(got, want):
    """The largest difference in any leaf, relative to the largest entry of that leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    pairs = zip(jax.tree.leaves(float64(got)), jax.tree.leaves(float64(want)), strict=True)
    return max(np.abs(g - w).max() / (np.abs(w).max() + 1e-30) for g, w in pairs if w.size)
