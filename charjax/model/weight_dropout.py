"""Dropout on parameters: weight-drop and embedding dropout, one mask a step.

Both are functions of the parameters, so that every implementation of the recurrence runs them,
and the model that is sampled, scored and exported has neither.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from charjax.config import ModelConfig
from charjax.types import PRNGKey, PyTree


def drop_weights(config: ModelConfig, params: PyTree, key: PRNGKey) -> PyTree:
    """Drops parameters at random; the mask is the same for all sequences and positions of a step.

    * `dropout_recurrent`: entries of the recurrent kernels ("weight-drop", the DropConnect of
      Wan et al. 2013 on hidden-to-hidden weights: Merity et al. 2018, arXiv:1708.02182).
    * `dropout_embed`: whole tokens of the embedding, wherever they occur (Gal and Ghahramani
      2016, arXiv:1512.05287).

    What is kept is divided by the probability to be kept.

    Args:
      config: the rates.
      params: of a `CharRNN`.
      key: that of the step; the same on every device and for every microbatch.
    """
    rates = {"recurrent/kernel": config.dropout_recurrent, "embedding": config.dropout_embed}

    def drop(path: tuple[Any, ...], param: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rate = next((rate for end, rate in rates.items() if name.endswith(end)), 0.0)
        if not rate:
            return param
        shape = (param.shape[0], 1) if name == "embedding" else param.shape
        site = jax.random.fold_in(key, _site(name))
        return jnp.where(_keep_mask(site, 1 - rate, shape), param / (1 - rate), 0.0)

    return jax.tree_util.tree_map_with_path(drop, params)


def _keep_mask(key: PRNGKey, probability: float, shape: tuple[int, ...]) -> Bool[Array, "*shape"]:
    """A mask whose entries are true with this probability, rounded to a multiple of 2^-16.

    A random word of 32 bits serves two entries: for a kernel of 768 units the random words are
    most of what weight-drop costs on a CPU, and `jax.random.bernoulli` takes one for each entry.
    """
    words = jax.random.bits(key, (-(-shape[0] // 2), *shape[1:]), jnp.uint32)
    halves = jnp.concatenate([words & 0xFFFF, words >> 16])[: shape[0]]
    return halves < round(probability * 0x10000)


def _site(name: str) -> int:
    """A number for a parameter's name: 0 for the embedding, else its layer's number plus 1."""
    return 0 if name == "embedding" else int(name.split("/")[0].removeprefix("layer_")) + 1
