"""The next character from logits: temperature, top-k, nucleus, and noise by key."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from charjax.errors import InputError
from charjax.types import Scalar

# Beyond these the division of logits leaves float32, and an excluded character becomes a NaN.
COLDEST, HOTTEST = 1e-30, 1e30


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next character is chosen.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest character.
      top_k: keep the k likeliest characters; 0 keeps all.
      top_p: keep the likeliest characters that together have this probability; 1 keeps all.
      seed: of the random numbers.
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


def choose(
    logits: Float[Array, "batch vocab"],
    keys: Key[Array, " batch"],
    temperature: Scalar,
    top_p: Scalar | None = None,
) -> Int[Array, " batch"]:
    """The next character of each lane, int32.

    Args:
      logits: float32; minus infinity excludes a character.
      keys: one a lane.
      temperature: 0 takes the likeliest character, exactly.
      top_p: nucleus sampling (Holtzman et al. 2019) at this temperature; None: off.
    """
    return choose_with_noise(logits, gumbel_noise(keys, logits.shape[-1]), temperature, top_p)


def gumbel_noise(keys: Key[Array, " batch"], vocab_size: int) -> Float[Array, "batch vocab"]:
    """Gumbel noise: the largest of logits plus noise is a draw from their distribution."""
    return jax.vmap(lambda key: jax.random.gumbel(key, (vocab_size,)))(keys)


def choose_with_noise(
    logits: Float[Array, "batch vocab"],
    gumbel_noise: Float[Array, "batch vocab"],
    temperature: Scalar,
    top_p: Scalar | None,
) -> Int[Array, " batch"]:
    """`choose` with the noise already drawn."""
    if top_p is not None:
        # Shifted so that the largest is 0, which no temperature makes overflow.
        shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
        kept = mask_below_top_p(shifted / jnp.clip(temperature, COLDEST, HOTTEST), top_p)
        logits = jnp.where(jnp.isneginf(kept), kept, logits)
    # Warmer noise, not colder logits: where both are 0, that is argmax.
    return jnp.argmax(logits + temperature * gumbel_noise, axis=-1).astype(jnp.int32)


def mask_below_top_k(logits: Float[Array, "batch vocab"], k: int) -> Float[Array, "batch vocab"]:
    """The logits with all but the `k` largest of each lane at minus infinity; ties are kept."""
    k = min(k, logits.shape[-1])
    least = jax.lax.top_k(logits, k)[0][:, -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def mask_below_top_p(logits: Float[Array, "batch vocab"], p: Scalar) -> Float[Array, "batch vocab"]:
    """The logits with all but the smallest set of total probability `p` at minus infinity."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(ordered)
    # A character stays if those before it do not reach p; the likeliest always stays.
    stays = jnp.cumsum(probs, axis=-1) - probs < jnp.maximum(p, np.finfo(np.float32).tiny)
    least = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)
