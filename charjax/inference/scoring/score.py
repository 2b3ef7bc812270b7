"""The score of a text under a trained model: of a file, or of a part of the run's own text."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from optax.losses import softmax_cross_entropy_with_integer_labels

from charjax.data.new_text import read_tokens
from charjax.data.packed.tokens import TokenIds
from charjax.data.vocab import Vocab
from charjax.errors import DivergedError, InputError
from charjax.inference.load import TrainedModel
from charjax.inference.options import DynamicOptions
from charjax.inference.scoring.dynamic import gradient_rms, iter_dynamic, update_rule
from charjax.inference.scoring.evaluate import Score, streamed_score
from charjax.inference.scoring.forward_pass import Piece, ZeroCarry, as_scored_ids, iter_predictions
from charjax.inference.scoring.forward_program import Measure
from charjax.inference.training_text import training_splits
from charjax.runtime.display import ProgressFn, counted, no_progress
from charjax.schema import check_integer

# How a text is read: (measure, model, ids, progress) -> what `iter_predictions` yields.
Method: TypeAlias = Callable[[Measure, TrainedModel, TokenIds, ProgressFn], Iterator[Piece]]

_CHUNK = 1 << 20  # tokens counted at a time, to bound the memory
_logger = logging.getLogger(__name__)


def read_file(
    trained: TrainedModel,
    file: str | Path,
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
      InputError: the file is missing, malformed or too short to predict a character of it, or has
        characters outside the vocabulary.
    """
    rules = trained.run.reading
    if options:
        rules = rules.with_options(trained.config.data, options)
        mode = rules.documents.mode
        is_other = mode not in ("none", trained.run.reading.documents.mode)
        if is_other and not trained.vocab.boundary:
            _logger.info(
                f"--documents={mode}: this model has no document boundary, so that its carry goes "
                "on from each document to the next"
            )
    ids = read_tokens(
        str(file),
        rules,
        trained.vocab,
        unknown=unknown,
        are_markers_required=bool(options and options.keys() & {"start", "end"}),
    )
    if ids.size < 2:
        raise InputError(f"--file={file}: has no character to predict; give a longer text")
    return ids


def read_part(trained: TrainedModel, part: Literal["val", "test"]) -> TokenIds:
    """The token ids of the validation or test part of the text that the run was trained on.

    Args:
      trained: the model.
      part: which part of `data.split`.

    Raises:
      InputError: the run has no such part, or its text is not the one that it was trained on.
      HostError: the text can be neither found nor downloaded.
    """
    ids: TokenIds = getattr(training_splits(trained, f"--part={part}", "give --file"), part).ids
    if ids.size < 2:
        raise InputError(
            f"--part={part}: config.data.split={trained.config.data.split} leaves "
            f"{counted(ids.size, 'character')} for it; give --file"
        )
    return ids


def in_windows(window: int) -> Method:
    """The method that sets the carry to zero before each window of so many characters.

    The windows follow one another from the first character on. A window reads its characters,
    and predicts from each of them and those before it in the window the one after it. So every
    character of the text but the first is predicted once, from 1 to `window` characters. This is
    the context that a Transformer of this block size has.

    Args:
      window: characters; 0: the whole text is one window.

    Raises:
      InputError: the window is negative, or no integer.
    """
    check_integer("--window", window, 0)

    def method(
        measure: Measure, trained: TrainedModel, ids: TokenIds, progress: ProgressFn
    ) -> Iterator[Piece]:
        return iter_predictions(
            measure,
            trained.config.model,
            trained.params,
            ids,
            zero_carry=ZeroCarry(trained.vocab.boundary_id, window),
            progress=progress,
        )

    return method


# Keeps the carry from the first character to the last.
in_stream: Method = in_windows(0)


def dynamically(options: DynamicOptions) -> Method:
    """Dynamic evaluation, with the statistics of the gradients on the run's training text.

    Raises (when it is iterated over):
      InputError: the training text is gone, changed or too short; the weights are quantized.
      DivergedError: the loss does not stay finite.
      HostError: the training text can be neither found nor downloaded.
    """

    def method(
        measure: Measure, trained: TrainedModel, ids: TokenIds, progress: ProgressFn
    ) -> Iterator[Piece]:
        model, params = trained.config.model, trained.params
        if model.dtype == "int8":
            raise InputError("--dynamic: int8 weights do not learn; give --weights=float32")
        ids = as_scored_ids(ids)
        train = training_splits(trained, "--dynamic", "score without --dynamic").train.ids
        zero_carry, segment = ZeroCarry(trained.vocab.boundary_id), options.segment
        reading: Any = {"zero_carry": zero_carry, "segment": segment, "progress": progress}
        rule = update_rule(params, gradient_rms(model, params, train, **reading), options)
        for piece in iter_dynamic(measure, model, rule, ids, **reading):
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(piece.values)):
                raise DivergedError(
                    f"--learning_rate={options.learning_rate}: with it the loss of this text does "
                    "not stay finite; give a smaller one"
                )
            yield piece

    return method


def score_text(
    trained: TrainedModel,
    ids: TokenIds,
    progress: ProgressFn = no_progress,
    method: Method = in_stream,
) -> Score:
    """The mean loss of a text.

    Args:
      trained: the model.
      ids: of the text.
      progress: called with the number of chunks done and the total.
      method: how the text is read.

    Raises:
      InputError: the text is too short.
      DivergedError: the loss is not finite.
    """
    ids = as_scored_ids(ids)
    pieces = method(softmax_cross_entropy_with_integer_labels, trained, ids, progress)
    result = streamed_score(pieces, ids.size - 1)
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
