"""Cross entropy of a model on a text: the loss of every character, in nats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from optax.losses import softmax_cross_entropy_with_integer_labels

from charjax.config import Config, DataConfig, ModelConfig
from charjax.data.dataset import Dataset
from charjax.data.packed.tokens import TokenIds
from charjax.inference.scoring.forward_pass import Piece, ZeroCarry, in_text_order, iter_predictions
from charjax.runtime.display import ProgressFn, no_progress
from charjax.types import PyTree

_MAX_EVAL_CHARS = 4_000_000  # in training, unless `data.eval_chars` says otherwise
_SUMMED = 8192  # float32 numbers that numpy's sum in float64 adds up at a time: its buffer


@dataclass(frozen=True)
class Score:
    """The loss of a text.

    Attributes:
      chars: characters predicted: all but the first, which nothing precedes.
      nats_per_char: mean cross entropy in nats.
      num_bytes: of the predicted characters in UTF-8; None where they are not known.
    """

    chars: int
    nats_per_char: float
    num_bytes: int | None = None

    @property
    def bits_per_char(self) -> float:
        """Mean cross entropy in bits."""
        return self.nats_per_char / math.log(2)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits of all characters by bytes of their UTF-8; None where those are not known."""
        return self.bits_per_char * self.chars / self.num_bytes if self.num_bytes else None

    @property
    def perplexity(self) -> float:
        """exp(nats per character); infinite where that overflows."""
        return math.exp(self.nats_per_char) if self.nats_per_char < 700 else math.inf

    def to_json(self) -> dict[str, Any]:
        """JSON values for `charjax score`. An infinite perplexity becomes None."""
        return {
            "chars": self.chars,
            "nats_per_char": self.nats_per_char,
            "bits_per_char": self.bits_per_char,
            "bits_per_byte": self.bits_per_byte,
            "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
        }


def max_eval_chars(config: DataConfig) -> int:
    """How many characters of the validation split an evaluation in training reads at most."""
    return config.eval_chars or _MAX_EVAL_CHARS


def score(
    config: ModelConfig,
    params: PyTree,
    ids: TokenIds | Sequence[int],
    *,
    boundary_id: int | None = None,
    max_chars: int = 0,
    progress: ProgressFn = no_progress,
) -> Score:
    """The mean loss of a text; the arguments and the errors are those of `char_nats`."""
    nats = char_nats(
        config, params, ids, boundary_id=boundary_id, max_chars=max_chars, progress=progress
    )
    return Score(nats.size, float(np.mean(nats, dtype=np.float64)))


def validate(
    config: Config, params: PyTree, dataset: Dataset, progress: ProgressFn = no_progress
) -> Score | None:
    """The score of a run on its validation split, or on `max_eval_chars` of its characters.

    None if there is nothing to predict: the split has fewer than two tokens.

    Args:
      config: of the run, with dtype and recurrence resolved.
      params: of a `CharRNN`.
      dataset: of the run.
      progress: as for `char_nats`.
    """
    ids = dataset.splits.val.ids
    if ids.size < 2:
        return None
    return score(
        config.model,
        params,
        ids,
        boundary_id=dataset.vocab.boundary_id,
        max_chars=max_eval_chars(config.data),
        progress=progress,
    )


def streamed_score(pieces: Iterator[Piece], predicted: int) -> Score:
    """The `score` of a text by these losses, digit for digit, in a thousandth of their memory.

    numpy adds up blocks of `_SUMMED` losses, and then their sums one after another. So the blocks
    are added up as they become complete.

    Args:
      pieces: the losses of all characters.
      predicted: how many they are.
    """
    sums = np.zeros(math.ceil(predicted / _SUMMED))
    missing = np.minimum(_SUMMED, predicted - _SUMMED * np.arange(len(sums)))
    blocks: dict[int, np.ndarray] = {}
    for start, nats in pieces:
        for block in range(start // _SUMMED, (start + len(nats) - 1) // _SUMMED + 1):
            offset = block * _SUMMED
            begin, end = max(start, offset), min(start + len(nats), offset + _SUMMED)
            losses = blocks.setdefault(block, np.empty(missing[block], np.float32))
            losses[begin - offset : end - offset] = nats[begin - start : end - start]
            missing[block] -= end - begin
            if not missing[block]:
                sums[block] = np.sum(blocks.pop(block), dtype=np.float64)
    return Score(predicted, float(np.cumsum(sums)[-1]) / predicted)


def char_nats(
    config: ModelConfig,
    params: PyTree,
    ids: TokenIds | Sequence[int],
    *,
    boundary_id: int | None = None,
    max_chars: int = 0,
    progress: ProgressFn = no_progress,
) -> Float[np.ndarray, " predicted"]:
    """Cross entropy of every character but the first, float32, in nats.

    Memory is bounded whatever the vocabulary and the length of the text, but for the result. It
    runs compiled programs: within `jax.jit` or `jax.grad` call `CharRNN.run`.

    Args:
      config: the architecture.
      params: of a `CharRNN`.
      ids: token ids of the text.
      boundary_id: of the token that starts every document, which is predicted from a zero
        carry; None: the text is one document.
      max_chars: as for `charjax.inference.scoring.forward_pass.iter_predictions`.
      progress: called with the number of chunks done and the total.

    Raises:
      InputError: the text has fewer than two characters, an id is outside the vocabulary, or the
        parameters are those of a traced function, or of another config.
    """
    pieces = iter_predictions(
        softmax_cross_entropy_with_integer_labels,
        config,
        params,
        ids,
        zero_carry=ZeroCarry(boundary_id),
        max_chars=max_chars,
        progress=progress,
    )
    nats: Float[np.ndarray, " predicted"] = in_text_order(pieces)
    return nats
