"""The options of the rows of a batch, as arrays for the sampling loop; see `Sampling`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Int

from charjax.errors import InputError
from charjax.inference.options import Sampling
from charjax.inference.sampling.logits import MAX_TEMPERATURE

# An array of the host or of the device.
AnyArray: TypeAlias = Any

# The fields of `Sampling` that cost something unless they have their default, which is off.
_SWITCHES = ("logit_bias", "repetition_penalty", "min_p", "top_k", "top_p")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """The values of the options of each row, as the loop reads them; see `Sampling`.

    An option that is None costs nothing: the loop is compiled without it.

    Attributes:
      temperature: 0 is greedy.
      bias: added to the logits.
      penalty: 1 leaves a token alone.
      window: of the penalty, in characters.
      min_log_ratio: temperature times the logarithm of `min_p`.
      top_k: 0 keeps all tokens.
      max_k: the largest `top_k`.
      top_p: 1 keeps all tokens.
    """

    temperature: Float[AnyArray, "batch 1"]
    bias: Float[AnyArray, "batch vocab"] | None
    penalty: Float[AnyArray, "batch vocab"] | None
    window: Int[AnyArray, "batch 1"]
    min_log_ratio: Float[AnyArray, "batch 1"] | None
    top_k: Int[AnyArray, "batch 1"] | None
    max_k: int = field(metadata={"static": True})
    top_p: Float[AnyArray, "batch 1"] | None

    @property
    def only_add(self) -> bool:
        """Whether they are no more than a number to add to each logit."""
        others = (self.penalty, self.min_log_ratio, self.top_k, self.top_p)
        return all(option is None for option in others)


def row_options(
    rows: Sequence[Sampling],
    vocab_size: int,
    *,
    masked: int | None,
    exempt: int | None,
    num_top: int | None = None,
    all_or_none: bool = False,
) -> RowOptions:
    """The options of the rows of a batch: those that a row has.

    Args:
      rows: the options of each.
      vocab_size: tokens of the model.
      masked: a token that is never sampled, or None.
      exempt: a token without repetition penalty, the document boundary; or None.
      num_top: as for `Sampler.run`. Where log-probabilities are wanted, there is a bias in any
        case, which forbids the masked token; see `Sampler.weights`.
      all_or_none: whether there are all options if a row has any.

    Raises:
      InputError: a biased token is outside the vocabulary, or every token is forbidden.
    """
    bias = np.zeros((len(rows), vocab_size), np.float32)
    penalty = np.ones((len(rows), vocab_size), np.float32)
    for row, sampling in enumerate(rows):
        penalty[row] = sampling.repetition_penalty
        for token, value in sampling.logit_bias:
            if not 0 <= token < vocab_size:
                raise InputError(f"logit_bias of token {token}: the model has {vocab_size} tokens")
            bias[row, token] += value
    if masked is not None:
        bias[:, masked] = -np.inf
    if exempt is not None:
        penalty[:, exempt] = 1
    if np.isneginf(bias).all(axis=1).any():
        raise InputError("logit_bias: every token is forbidden; leave one to sample")

    def column(values: list[Any], dtype: Any = np.float32) -> Any:
        return np.array(values, dtype)[:, None]

    used = {n for n in _SWITCHES if any(getattr(row, n) != getattr(Sampling, n) for row in rows)}
    if all_or_none and used:
        used = set(_SWITCHES)
    top_k = column([min(row.top_k, vocab_size) for row in rows], np.int32)
    return RowOptions(
        temperature=column([min(row.temperature, MAX_TEMPERATURE) for row in rows]),
        bias=bias if num_top is not None or "logit_bias" in used else None,
        penalty=penalty if "repetition_penalty" in used else None,
        window=column([row.repetition_window for row in rows], np.int32),
        min_log_ratio=column([_min_log_ratio(row) for row in rows]) if "min_p" in used else None,
        top_k=top_k if "top_k" in used else None,
        max_k=vocab_size if all_or_none else int(top_k.max()),
        top_p=column([row.top_p for row in rows]) if "top_p" in used else None,
    )


def _min_log_ratio(sampling: Sampling) -> float:
    if sampling.min_p == 0:
        return -np.inf
    return min(sampling.temperature, MAX_TEMPERATURE) * float(np.log(sampling.min_p))
