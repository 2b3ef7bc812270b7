"""What a model predicts for every character of a text: its loss, its rank, the likeliest ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from charjax.data.packed.tokens import TokenIds
from charjax.data.vocab import Vocab
from charjax.inference.load import TrainedModel
from charjax.inference.scoring.forward_pass import in_text_order
from charjax.inference.scoring.score import Method, check_finite, in_stream
from charjax.runtime.display import ProgressFn
from charjax.types import Logits, PyTree, Tokens

_TOP = 5  # likeliest tokens that are kept, where the vocabulary has as many


class Predictions(NamedTuple):
    """What a model predicts for every character of a text but the first.

    Attributes:
      nats: cross entropy of the text's next character, in nats.
      ranks: of that character among all tokens; 1: the likeliest.
      top_ids: the likeliest tokens, the likeliest first.
      top_nats: their negative log-probabilities.
    """

    nats: Float[np.ndarray, " predicted"]
    ranks: Int[np.ndarray, " predicted"]
    top_ids: Int[np.ndarray, "predicted top"]
    top_nats: Float[np.ndarray, "predicted top"]


def predict(
    trained: TrainedModel,
    ids: TokenIds,
    progress: ProgressFn,
    method: Method = in_stream,
) -> Predictions:
    """The predictions of a model for a text.

    Args:
      trained: the model.
      ids: of the text.
      progress: called with the number of chunks done and the total.
      method: how the text is read.

    Raises:
      InputError: the text has fewer than two characters.
      DivergedError: the loss is not finite.
    """
    predictions = Predictions(*in_text_order(method(_predictions, trained, ids, progress)))
    check_finite(trained, float(np.mean(predictions.nats)))
    return predictions


def prediction_records(
    vocab: Vocab, ids: TokenIds, predictions: Predictions
) -> Iterator[dict[str, Any]]:
    """JSON objects for `charjax score --per_char`, one for each predicted character.

    Each has `character`, `nats`, `rank` and `top`, a list of the likeliest characters with their
    probabilities. A byte is the character of its number, a document boundary is null, and [UNK]
    is "[UNK]".
    """
    names: list[str | None] = vocab.by_id(vocab.characters, boundary=None, unk="[UNK]")
    targets = np.asarray(ids[1:])
    for token, nats, rank, top_ids, top_nats in zip(targets, *predictions, strict=True):
        top = zip(top_ids.tolist(), top_nats.tolist(), strict=True)
        yield {
            "character": names[token],
            "nats": float(nats),
            "rank": int(rank),
            "top": [{"character": names[i], "probability": math.exp(-n)} for i, n in top],
        }


def _predictions(logits: Logits, targets: Tokens) -> PyTree:
    """The arrays of `Predictions`, of each position."""
    log_probabilities = jax.nn.log_softmax(logits)
    given = jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)
    ranks = 1 + jnp.sum(log_probabilities > given, axis=-1)
    top, top_ids = jax.lax.top_k(log_probabilities, min(_TOP, logits.shape[-1]))
    return -given[..., 0], ranks, top_ids, -top
