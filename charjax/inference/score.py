"""The score of a text under a trained model: of a file, or of a part of the run's own text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from charjax.data.dataset import load_dataset, read_tokens
from charjax.data.store_tokens import TokenIds
from charjax.data.vocab import Vocab
from charjax.errors import DivergedError, InputError
from charjax.inference.evaluate import Score, score
from charjax.inference.load import TrainedModel
from charjax.runtime.display import ProgressFn

_CHUNK = 1 << 20  # tokens counted at a time, to bound the memory


def read_file(
    trained: TrainedModel,
    file: str,
    *,
    unknown: str,
    options: Mapping[str, Any] | None = None,
) -> TokenIds:
    """The token ids of a text file, which is read as the model's training text was.

    Args:
      trained: the model.
      file: a path, as `data.path` takes it, or "-" for standard input.
      unknown: "error", or "unk" to read characters outside the vocabulary as [UNK].
      options: fields of `charjax.config.DataConfig` in which the file differs from the run's
        own text, such as {"encoding": "latin-1"}.

    Raises:
      InputError: the file is missing, malformed, or has characters outside the vocabulary.
    """
    rules = trained.reading
    if options:
        try:
            rules = rules.with_options(trained.config.data, options)
        except InputError as error:
            raise InputError(str(error).replace("config.data.", "--")) from None
    return read_tokens(
        file,
        rules,
        trained.vocab,
        unknown=unknown,
        are_markers_required=bool(options and options.keys() & {"start", "end"}),
    )


def read_part(trained: TrainedModel, part: Literal["val", "test"]) -> TokenIds:
    """The token ids of the validation or test part of the text that the run was trained on.

    Args:
      trained: the model.
      part: which part of `data.split`.

    Raises:
      InputError: the run has no such part, or its text is not the one that it was trained on.
      HostError: the text can be neither found nor downloaded.
    """
    dataset = load_dataset(trained.config, known=trained.vocab.characters)
    if dataset.corpus.sha256 != trained.meta["corpus"]["sha256"]:
        raise InputError(
            f"--part={part}: {dataset.corpus.name} is not the text that this run was trained on "
            f"(SHA-256 {trained.meta['corpus']['sha256'][:12]}, now {dataset.corpus.sha256[:12]}); "
            "bring that text back, or give --file"
        )
    ids: TokenIds = getattr(dataset.splits, part).ids
    if ids.size < 2:
        raise InputError(
            f"--part={part}: config.data.split={trained.config.data.split} leaves "
            f"{ids.size} characters for it; give --file"
        )
    return ids


def score_text(trained: TrainedModel, ids: TokenIds, progress: ProgressFn) -> Score:
    """The mean loss of a text.

    Args:
      trained: the model.
      ids: of the text.
      progress: called with the number of chunks done and the total.

    Raises:
      InputError: the text is too short.
      DivergedError: the loss is not finite.
    """
    result = score(
        trained.config.model,
        trained.params,
        ids,
        boundary_id=trained.vocab.boundary_id,
        progress=progress,
    )
    check_finite(trained, result.nats_per_char)
    return replace(result, num_bytes=_utf8_bytes(trained.vocab, ids))


def _utf8_bytes(vocab: Vocab, ids: TokenIds) -> int | None:
    """The bytes of the UTF-8 of all tokens but the first; None if [UNK] is among them."""
    total = 0
    for begin in range(1, len(ids), _CHUNK):
        size = vocab.utf8_bytes(np.asarray(ids[begin : begin + _CHUNK]))
        if size is None:
            return None
        total += size
    return total


def check_finite(trained: TrainedModel, nats_per_char: float) -> None:
    """Raises DivergedError if the mean loss of a text is not finite."""
    # Saved weights are finite, yet a logit can overflow.
    if not math.isfinite(nats_per_char):
        raise DivergedError(
            f"step {trained.step}: its weights are so large that the loss of this text is not "
            "finite; try another --checkpoint"
        )
