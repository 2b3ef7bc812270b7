"""The score of a text file under a trained model."""

from __future__ import annotations

import math

from charjax.data.corpus import read_text
from charjax.errors import DivergedError
from charjax.inference.evaluate import Score, score
from charjax.inference.load import TrainedModel
from charjax.runtime.display import ProgressFn


def score_file(trained: TrainedModel, file: str, *, unknown: str, progress: ProgressFn) -> Score:
    """The mean loss of a text file, which is read as the model's training text was.

    Args:
      trained: the model.
      file: a path, or "-" for standard input.
      unknown: "error", or "unk" to read characters outside the vocabulary as [UNK].
      progress: is told of the chunks done, and of all.

    Raises:
      InputError: the file is missing, malformed, too short, or has characters outside the
        vocabulary.
      DivergedError: the loss is not finite.
    """
    text = read_text(file, trained.config.data)
    ids = trained.vocab.encode_corpus(text, unknown=unknown)
    result = score(trained.config.model, trained.params, ids, progress=progress)
    # Finite weights, as all that are saved, can still give a logit that overflows.
    if not math.isfinite(result.nats_per_char):
        raise DivergedError(
            f"step {trained.step}: its weights are so large that the loss of this text is not "
            "finite; try another --checkpoint"
        )
    return result
