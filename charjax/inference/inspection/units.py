"""The units of a model that best separate a feature of its text.

A unit's activations are compared with the feature's values by rank: by the area under the ROC
curve for a feature that is true or false, by Spearman's coefficient for a number. Units are
chosen on the first half of the text, and their statistic is that of the second half, which a
best of many has not picked by chance.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from charjax.inference.inspection.features import FEATURES, Feature, Values

_MIN_CHARS = 10  # with and without a feature in each half; with fewer it is not looked for
_BEST = 3  # units of each feature

Ranks: TypeAlias = Float[np.ndarray, "units chars"]
Statistics: TypeAlias = Float[np.ndarray, " units"]
HalfRanks: TypeAlias = tuple[Float[np.ndarray, "units first"], Float[np.ndarray, "units second"]]


class Unit(NamedTuple):
    """A unit that separates a feature.

    Attributes:
      number: of the unit.
      sign: 1 if its activation rises with the feature on the first half, -1 if it falls.
      chosen: the statistic on the first half, of the activation times the sign.
      reported: the same on the second half.
    """

    number: int
    sign: int
    chosen: float
    reported: float


class Separation(NamedTuple):
    """How well units separate a feature.

    Attributes:
      feature: the feature.
      statistic: "AUC", from 0.5 (no relation) to 1, or "Spearman", from 0 to 1.
      units: the best on the first half, the best one first; none if the text lacks the feature.
    """

    feature: Feature
    statistic: str
    units: tuple[Unit, ...]

    def __str__(self) -> str:
        """The best unit, of which there must be one, in words."""
        best = self.units[0]
        return f"{self.feature.name}: unit {best.number}, {self.statistic} {best.reported:.2f}"


def separations(text: str, activations: Float[np.ndarray, "units chars"]) -> list[Separation]:
    """The units that best separate each feature.

    Args:
      text: one character for each token.
      activations: after each character.
    """
    half = len(text) // 2
    halves = slice(0, half), slice(half, len(text))
    first, second = (average_ranks(activations[:, part]) for part in halves)
    return [
        _separation(feature, feature.values(text), (first, second), half) for feature in FEATURES
    ]


def average_ranks(x: Float[np.ndarray, "units chars"]) -> Ranks:
    """The rank of each value in its row, from 1; of equal values the mean of their ranks."""
    ranks = np.empty(x.shape)
    for row, out in zip(x, ranks, strict=True):
        _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
        out[:] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def auc(ranks: Ranks, positive: Values) -> Statistics:
    """The area under the ROC curve of each unit: P(activation with the feature > without).

    It is the Mann-Whitney statistic over the number of pairs; equal activations count half.
    """
    with_feature = np.count_nonzero(positive)
    without = positive.size - with_feature
    mean_rank = ranks @ positive / max(1, with_feature)
    area: Statistics = (mean_rank - (with_feature + 1) / 2) / max(1, without)
    return area


def spearman(ranks: Ranks, values: Values) -> Statistics:
    """Spearman's coefficient of each unit: Pearson's of the ranks; 0 for a constant one."""
    (value_ranks,) = average_ranks(values[None].astype(np.float64))
    x = ranks - ranks.mean(axis=1, keepdims=True)
    y = value_ranks - value_ranks.mean()
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y)
    result: Statistics = np.divide(x @ y, norms, out=np.zeros(len(x)), where=norms > 0)
    return result


def _separation(feature: Feature, values: Values, ranks: HalfRanks, half: int) -> Separation:
    is_number = values.dtype != np.bool_
    statistic = "Spearman" if is_number else "AUC"
    parts = values[:half], values[half:]
    if min(np.bincount(part != 0, minlength=2).min() for part in parts) < _MIN_CHARS:
        return Separation(feature, statistic, ())
    measure, neutral = (spearman, 0.0) if is_number else (auc, 0.5)
    first, second = (measure(r, part) - neutral for r, part in zip(ranks, parts, strict=True))
    signs = np.where(first < 0, -1, 1)
    best = np.argsort(-np.abs(first), kind="stable")[:_BEST]
    units = [
        Unit(int(i), int(signs[i]), *(float(neutral + signs[i] * x[i]) for x in (first, second)))
        for i in best
    ]
    return Separation(feature, statistic, tuple(units))
