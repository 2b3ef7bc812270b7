"""The controls of the rows of a batch, as arrays for the sampling loop; see `Sampling`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from charjax.errors import InputError
from charjax.inference.sampling import MAX_TEMPERATURE, Sampling

# An array of the host or of the device.
AnyArray: TypeAlias = Any


class Enabled(NamedTuple):
    """The controls that a program has. Those that it lacks cost nothing.

    Attributes:
      top_k: the largest k of a row; 0: none has one.
      top_p: whether a row has a nucleus below 1.
      min_p: whether a row has a minimum above 0.
      penalty: whether a row has a repetition penalty other than 1.
      bias: whether a row has a logit bias.
      num_top: how many of the likeliest tokens come with their log-probabilities, beside the
        chosen one; None: no log-probabilities.
    """

    top_k: int = 0
    top_p: bool = False
    min_p: bool = False
    penalty: bool = False
    bias: bool = False
    num_top: int | None = None

    @property
    def has_bias(self) -> bool:
        """Whether the loop adds `RowControls.bias`.

        It does for log-probabilities, too: they need the logit of a token that is not sampled.
        """
        return self.bias or self.num_top is not None

    @classmethod
    def for_rows(cls, rows: Sequence[Sampling], num_top: int | None = None) -> Enabled:
        """The controls that at least one of these rows uses."""
        return cls(
            max(row.top_k for row in rows),
            any(row.top_p < 1 for row in rows),
            any(row.min_p > 0 for row in rows),
            any(row.repetition_penalty != 1 for row in rows),
            any(row.logit_bias for row in rows),
            num_top,
        )


class RowControls(NamedTuple):
    """The values of the controls of each row, as the loop reads them; see `Sampling`.

    Attributes:
      temperature: 0 is greedy.
      top_k: 0 keeps all tokens.
      top_p: 1 keeps all tokens.
      min_log_ratio: temperature times the logarithm of `min_p`.
      penalty: 1 leaves a token alone.
      window: of the penalty, in characters.
      bias: added to the logits.
    """

    temperature: Float[AnyArray, "batch 1"]
    top_k: Int[AnyArray, "batch 1"]
    top_p: Float[AnyArray, "batch 1"]
    min_log_ratio: Float[AnyArray, "batch 1"]
    penalty: Float[AnyArray, "batch vocab"]
    window: Int[AnyArray, "batch 1"]
    bias: Float[AnyArray, "batch vocab"]


def row_controls(
    rows: Sequence[Sampling], vocab_size: int, *, masked: int | None, exempt: int | None
) -> RowControls:
    """The controls of the rows of a batch.

    Args:
      rows: the options of each.
      vocab_size: tokens of the model.
      masked: a token that is never sampled, or None.
      exempt: a token without repetition penalty, the document boundary; or None.

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

    return RowControls(
        column([min(row.temperature, MAX_TEMPERATURE) for row in rows]),
        column([min(row.top_k, vocab_size) for row in rows], np.int32),
        column([row.top_p for row in rows]),
        column([_min_log_ratio(row) for row in rows]),
        penalty,
        column([row.repetition_window for row in rows], np.int32),
        bias,
    )


def _min_log_ratio(sampling: Sampling) -> float:
    if sampling.min_p == 0:
        return -np.inf
    return min(sampling.temperature, MAX_TEMPERATURE) * float(np.log(sampling.min_p))
