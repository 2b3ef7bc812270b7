"""A look into a model along a text: its predictions, and what its units track."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from charjax.data.vocab import Vocab
from charjax.inference.activations import activations
from charjax.inference.load import TrainedModel
from charjax.inference.predictions import Predictions, predict
from charjax.inference.units import Separation, separations
from charjax.runtime.display import ProgressFn


class Inspection(NamedTuple):
    """What a model does along a text.

    Attributes:
      trained: the model.
      ids: of the text.
      predictions: for every character but the first.
      activations: of every unit after each character, from -1 to 1.
      separations: the units that best separate each feature.
    """

    trained: TrainedModel
    ids: Int[np.ndarray, " chars"]
    predictions: Predictions
    activations: Float[np.ndarray, "units chars"]
    separations: list[Separation]


def inspect(
    trained: TrainedModel, ids: Int[np.ndarray, " chars"], progress: ProgressFn
) -> Inspection:
    """Runs a model over a text.

    Args:
      trained: the model.
      ids: of the text.
      progress: called with the number of chunks of the predictions and of the activations that
        are done, and the total of either.

    Raises:
      InputError: the text has fewer than two characters.
      DivergedError: the loss is not finite.
    """
    predictions = predict(trained, ids, progress)
    units = activations(trained, ids, progress)
    text = feature_text(trained.vocab, ids)
    return Inspection(trained, ids, predictions, units, separations(text, units))


def feature_text(vocab: Vocab, ids: Int[np.ndarray, " chars"]) -> str:
    """The text of token ids with one character for each: a document boundary is a line end.

    [UNK] and the bytes of longer characters are U+FFFD.
    """
    unknown = "\ufffd"
    characters = [c if vocab.unit != "byte" or c.isascii() else unknown for c in vocab.characters]
    table = vocab.by_id(characters, boundary="\n", unk=unknown)
    return "".join(table[i] for i in ids)
