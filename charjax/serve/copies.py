"""Passages of a text that occur in the training text."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import threading
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt64

from charjax.errors import CharjaxError, InputError
from charjax.inference.load import TrainedModel
from charjax.inference.sampling.copying import CopyTable, copy_table
from charjax.inference.training_text import decoded, training_text
from charjax.serve.errors import ProtocolError

_logger = logging.getLogger(__name__)

_BASE = 0x9E3779B97F4A7C15  # odd, so that its powers have inverses modulo 2**64
_MAX_CHARS = 50_000_000  # of a training text: the hashes take 50 bytes a character at the peak
# Held while a text is read and hashed: requests at the same time need the memory for it once.
_one_reader = threading.Lock()
_NO_TEXT = "the training text is not here, has changed, or is too large"
Hashes = UInt64[np.ndarray, " windows"]


def copied_passages(trained: TrainedModel, text: str, min_chars: int) -> list[tuple[int, int]]:
    """The (start, end) of each passage that the training text has, too, ascending and disjoint.

    Passages that overlap become one, even if the training text does not have them together.

    Args:
      trained: the model.
      text: to search.
      min_chars: length of the shortest passage.

    Raises:
      ProtocolError: the training text is gone, has changed, or is too large.
    """
    with _without_text(404), _one_reader:
        known = _known_windows(trained, min_chars)
    windows = _window_hashes(text, min_chars)
    found = np.searchsorted(known, windows, side="right") > np.searchsorted(known, windows)
    passages: list[tuple[int, int]] = []
    for start in np.flatnonzero(found).tolist():
        end = start + min_chars
        if passages and start < passages[-1][1]:
            passages[-1] = (passages[-1][0], end)
        else:
            passages.append((start, end))
    return passages


def table_against_copying(trained: TrainedModel, max_copy: int) -> CopyTable:
    """The `copy_table` of a model's training text; made once, in seconds.

    Raises:
      ProtocolError: the training text is gone, has changed, or is too large.
    """
    with _without_text(400, "max_copy"), _one_reader:
        return _table(trained, max_copy)


@contextlib.contextmanager
def _without_text(status: int, param: str | None = None) -> Iterator[None]:
    """Turns errors of reading the training text into the error of a request, or of its field."""
    try:
        yield
    except CharjaxError as error:
        _warn_once(str(error))
        message = f"{param}: {_NO_TEXT}" if param else _NO_TEXT
        raise ProtocolError(status, message, param=param, code="no_text") from None


@functools.cache
def _warn_once(message: str) -> None:
    _logger.warning("%s", message)


@functools.lru_cache(maxsize=2)
def _table(trained: TrainedModel, max_copy: int) -> CopyTable:
    return copy_table(training_text(trained, "max_copy"), trained.vocab, max_copy)


@functools.lru_cache(maxsize=4)
def _known_windows(trained: TrainedModel, length: int) -> Hashes:
    """The sorted hashes of all passages of a length of the training text."""
    corpus = training_text(trained, "copied passages")
    if corpus.chars > _MAX_CHARS:
        raise InputError(f"copied passages: {corpus.name} has more than {_MAX_CHARS:,} characters")
    hashes: Hashes = np.unique(_window_hashes(decoded(trained, corpus.text), length))
    return hashes


def _window_hashes(text: str, length: int) -> Hashes:
    """A 64-bit hash of the passage of a length at every position.

    Two given passages have the same one with a probability of about length * 2**-63.
    """
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    if points.size < length:
        return np.empty(0, np.uint64)
    # Points become random numbers first: polynomials modulo 2**64 alone are easy to make collide.
    points = _scramble(points)
    powers = np.cumprod(np.full(points.size, _BASE, np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(points * powers)])
    inverse = np.uint64(pow(_BASE, -1, 2**64))
    inverses = np.cumprod(np.full(points.size - length + 1, inverse, np.uint64))
    hashes: Hashes = (sums[length:] - sums[:-length]) * inverses
    return hashes


def _scramble(points: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    distinct, at = np.unique(points, return_inverse=True)
    numbers = [hashlib.blake2b(str(p).encode(), digest_size=8).digest() for p in distinct.tolist()]
    return np.frombuffer(b"".join(numbers), "<u8")[at].astype(np.uint64)
