"""The score of a text under a trained model: of a file, or of a part of the run's own text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from charjax.data.dataset import load_dataset, read_tokens
from charjax.errors import DivergedError, InputError
from charjax.inference.evaluate import Score, score
from charjax.inference.load import TrainedModel
from charjax.runtime.display import ProgressFn


def score_file(
    trained: TrainedModel,
    file: str,
    *,
    unknown: str,
    progress: ProgressFn,
    options: Mapping[str, Any] | None = None,
) -> Score:
    """The mean loss of a text file, which is read as the model's training text was.

    Args:
      trained: the model.
      file: a path, as `data.path` takes it, or "-" for standard input.
      unknown: "error", or "unk" to read characters outside the vocabulary as [UNK].
      progress: called with the number of chunks done and the total.
      options: fields of `charjax.config.DataConfig` in which the file differs from the run's
        own text, such as {"encoding": "latin-1"}.

    Raises:
      InputError: the file is missing, malformed, too short, or has characters outside the
        vocabulary.
      DivergedError: the loss is not finite.
    """
    rules = trained.reading
    if options:
        try:
            rules = rules.with_options(trained.config.data, options)
        except InputError as error:
            raise InputError(str(error).replace("config.data.", "--")) from None
    ids = read_tokens(
        file,
        rules,
        trained.vocab,
        unknown=unknown,
        are_markers_required=bool(options and options.keys() & {"start", "end"}),
    )
    return _finite_score(trained, ids, progress)


def score_part(trained: TrainedModel, part: Literal["val", "test"], progress: ProgressFn) -> Score:
    """The mean loss of the validation or test part of the text that the run was trained on.

    Args:
      trained: the model.
      part: which part of `data.split`.
      progress: called with the number of chunks done and the total.

    Raises:
      InputError: the run has no such part, or its text is not the one that it was trained on.
      HostError: the text can be neither found nor downloaded.
      DivergedError: the loss is not finite.
    """
    dataset = load_dataset(trained.config, known=trained.vocab.characters)
    if dataset.corpus.sha256 != trained.meta["corpus"]["sha256"]:
        raise InputError(
            f"--part={part}: {dataset.corpus.name} is not the text that this run was trained on "
            f"(SHA-256 {trained.meta['corpus']['sha256'][:12]}, now {dataset.corpus.sha256[:12]}); "
            "bring that text back, or give --file"
        )
    ids = getattr(dataset.splits, part).ids
    if ids.size < 2:
        raise InputError(
            f"--part={part}: config.data.split={trained.config.data.split} leaves "
            f"{ids.size} characters for it; give --file"
        )
    return _finite_score(trained, ids, progress)


def _finite_score(
    trained: TrainedModel, ids: Int[np.ndarray, " chars"], progress: ProgressFn
) -> Score:
    result = score(
        trained.config.model,
        trained.params,
        ids,
        boundary_id=trained.vocab.boundary_id,
        progress=progress,
    )
    # Saved weights are finite, yet a logit can overflow.
    if not math.isfinite(result.nats_per_char):
        raise DivergedError(
            f"step {trained.step}: its weights are so large that the loss of this text is not "
            "finite; try another --checkpoint"
        )
    return result
