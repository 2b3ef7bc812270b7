"""Sampling of the next token from logits: temperature, top-k, top-p, and Gumbel noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from charjax.errors import InputError
from charjax.types import Scalar

# Beyond these, logits divided by the temperature leave float32 and a masked one becomes NaN.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-30, 1e30


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: divides the logits; 0 is greedy.
      top_k: keep the k likeliest tokens; 0 keeps all.
      top_p: keep the likeliest tokens that together have this probability; 1 keeps all.
      seed: of the random numbers.

    Raises:
      InputError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(
                f"--temperature={self.temperature}: must be 0 (greedy) or a positive number"
            )
        if self.top_k < 0:
            raise InputError(f"--top_k={self.top_k}: must be 0 (all characters) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top_p={self.top_p}: must be above 0 and at most 1")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed={self.seed}: must be from 0 to 2**32 - 1")


def sample_token(
    logits: Float[Array, "batch vocab"],
    keys: Key[Array, " batch"],
    temperature: Scalar,
    top_p: Scalar | None = None,
) -> Int[Array, " batch"]:
    """The next token of each sequence, int32.

    Args:
      logits: float32; minus infinity masks a token.
      keys: one per sequence.
      temperature: 0 is greedy, exactly.
      top_p: nucleus sampling (Holtzman et al. 2019) at this temperature; None: off.
    """
    noise = gumbel_noise(keys, logits.shape[-1])
    return sample_with_noise(logits, noise, temperature, top_p)


def gumbel_noise(keys: Key[Array, " batch"], vocab_size: int) -> Float[Array, "batch vocab"]:
    """Standard Gumbel noise. The argmax of logits plus noise is a sample (Gumbel-max trick)."""
    return jax.vmap(lambda key: jax.random.gumbel(key, (vocab_size,)))(keys)


def sample_with_noise(
    logits: Float[Array, "batch vocab"],
    noise: Float[Array, "batch vocab"],
    temperature: Scalar,
    top_p: Scalar | None,
) -> Int[Array, " batch"]:
    """`sample_token` with the Gumbel noise given."""
    if top_p is not None:
        # Shifted so that the largest is 0, which no temperature makes overflow.
        shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
        tempered = shifted / jnp.clip(temperature, MIN_TEMPERATURE, MAX_TEMPERATURE)
        masked = mask_below_top_p(tempered, top_p)
        logits = jnp.where(jnp.isneginf(masked), masked, logits)
    # The noise is multiplied instead of the logits divided, so that temperature 0 is argmax.
    return jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)


def mask_below_top_k(logits: Float[Array, "batch vocab"], k: int) -> Float[Array, "batch vocab"]:
    """The logits with all but the `k` largest of each row at minus infinity; ties stay."""
    k = min(k, logits.shape[-1])
    smallest = jax.lax.top_k(logits, k)[0][:, -1:]
    return jnp.where(logits < smallest, -jnp.inf, logits)


def mask_below_top_p(logits: Float[Array, "batch vocab"], p: Scalar) -> Float[Array, "batch vocab"]:
    """The logits with all but the smallest set of total probability `p` at minus infinity."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(ordered)
    # A token stays unless those before it already reach p; so the likeliest always stays.
    stays = jnp.cumsum(probs, axis=-1) - probs < jnp.maximum(p, np.finfo(np.float32).tiny)
    smallest = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < smallest, -jnp.inf, logits)
