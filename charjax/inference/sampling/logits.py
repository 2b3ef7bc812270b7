"""Sampling of the next token from logits: temperature, top-k, top-p, and Gumbel noise."""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from charjax.types import Scalar

# One value for all sequences, or one for each.
PerRow: TypeAlias = Scalar | Float[Array, "batch 1"]

# Beyond these, logits divided by the temperature leave float32 and a masked one becomes NaN.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-30, 1e30


def sample_token(
    logits: Float[Array, "batch vocab"],
    keys: Key[Array, " batch"],
    temperature: Scalar,
) -> Int[Array, " batch"]:
    """The next token of each sequence, int32.

    Args:
      logits: float32; minus infinity masks a token.
      keys: one per sequence.
      temperature: 0 is greedy, exactly.
    """
    noise = gumbel_noise(keys, logits.shape[-1])
    return sample_with_noise(logits, noise, temperature, None)


def gumbel_noise(keys: Key[Array, "*batch"], vocab_size: int) -> Float[Array, "*batch vocab"]:
    """Standard Gumbel noise. The argmax of logits plus noise is a sample (Gumbel-max trick)."""
    # One batch axis for all keys: nested ones may take XLA twice as long to compile.
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (vocab_size,), jnp.float32))(
        keys.reshape(-1)
    )
    return noise.reshape(*keys.shape, vocab_size)


def sample_with_noise(
    logits: Float[Array, "batch vocab"],
    noise: Float[Array, "batch vocab"],
    temperature: PerRow,
    top_p: PerRow | None,
) -> Int[Array, " batch"]:
    """The next token of each sequence, int32.

    Args:
      logits: float32; minus infinity masks a token.
      noise: from `gumbel_noise`.
      temperature: 0 is greedy, exactly.
      top_p: nucleus sampling (Holtzman et al. 2019) at this temperature; None: off.
    """
    if top_p is not None:
        # Shifted so that the largest is 0, which no temperature makes overflow.
        shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
        tempered = shifted / jnp.clip(temperature, MIN_TEMPERATURE, MAX_TEMPERATURE)
        masked = mask_below_top_p(tempered, top_p)
        logits = jnp.where(jnp.isneginf(masked), masked, logits)
    # The noise is multiplied instead of the logits divided, so that temperature 0 is argmax.
    return jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)


def mask_below_top_k(
    logits: Float[Array, "batch vocab"], max_k: int, k: Int[Array, "batch 1"]
) -> Float[Array, "batch vocab"]:
    """The logits with all but the `k` largest of each row at minus infinity; ties stay.

    Args:
      logits: float32.
      max_k: the largest k.
      k: of each row; 0 keeps all.
    """
    max_k = min(max_k, logits.shape[-1])
    largest = jax.lax.top_k(logits, max_k)[0]
    smallest = jnp.take_along_axis(largest, jnp.clip(k, 1, max_k) - 1, axis=-1)
    return jnp.where((logits < smallest) & (k > 0), -jnp.inf, logits)


def mask_below_top_p(logits: Float[Array, "batch vocab"], p: PerRow) -> Float[Array, "batch vocab"]:
    """The logits with all but the smallest set of total probability `p` at minus infinity."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(ordered)
    # A token stays unless those before it already reach p; so the likeliest always stays.
    stays = jnp.cumsum(probs, axis=-1) - probs < jnp.maximum(p, np.finfo(np.float32).tiny)
    smallest = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
    # Sums of probabilities can round to more than 1.
    return jnp.where((logits < smallest) & (p < 1), -jnp.inf, logits)


def mask_below_min_p(
    logits: Float[Array, "batch vocab"], log_ratio: Float[Array, "batch 1"]
) -> Float[Array, "batch vocab"]:
    """The logits with those below the largest of the row plus `log_ratio` at minus infinity.

    Args:
      logits: float32.
      log_ratio: at most 0; temperature times the logarithm of `Sampling.min_p`.
    """
    smallest = jnp.max(logits, axis=-1, keepdims=True) + log_ratio
    return jnp.where(logits < smallest, -jnp.inf, logits)


def penalize_repetition(
    logits: Float[Array, "batch vocab"],
    penalty: Float[Array, "batch vocab"],
    is_recent: Bool[Array, "batch vocab"],
) -> Float[Array, "batch vocab"]:
    """The logits of recent tokens divided by the penalty if positive, else multiplied by it."""
    penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(is_recent, penalized, logits)
