"""Token ids that come from outside: a list, or an array of any integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Integer

from charjax.errors import InputError


def as_ids(ids: Any) -> Integer[np.ndarray, " n"]:
    """The token ids of one text, such as a list or an array of JAX, as an array of numpy.

    Raises:
      InputError: they are not integers, or not those of one text.
    """
    try:
        array = np.asarray(ids)
    except ValueError:  # lists of several lengths, which are no array
        raise InputError("token ids of several texts: give those of one text, [n]") from None
    if array.ndim != 1:
        raise InputError(f"token ids of shape {array.shape}: give those of one text, [n]")
    if not array.size:
        return np.empty(0, np.int32)  # numpy takes an empty list for numbers with fractions
    _check_integers(array)
    return array


def check_ids(ids: Integer[np.ndarray, ...], vocab_size: int) -> None:
    """Raises InputError for an id outside the vocabulary, which XLA would silently clamp."""
    _check_integers(ids)
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise InputError(f"id {wrong}: the model has {vocab_size} tokens, 0 to {vocab_size - 1}")


def check_special(vocab_size: int, *tokens: int | None) -> None:
    """`check_ids` of tokens with a meaning, such as the document boundary; None: there is none."""
    given = [token for token in tokens if token is not None]
    check_ids(np.array(given or [0]), vocab_size)


def _check_integers(ids: np.ndarray) -> None:
    if not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"token ids of dtype {ids.dtype}: must be integers")
