"""A text dataset: the corpus, its vocabulary, its splits, and the training batches."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from charjax.config import Config
from charjax.data.batches import Batches, Splits, make_batches, split
from charjax.data.corpus import Corpus, load_corpus
from charjax.data.vocab import Vocab
from charjax.runtime.display import ProgressFn, no_progress

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Everything that training and evaluation read.

    Attributes:
      corpus: the text.
      vocab: of the whole text, validation and test included: a character that occurs
        only there is predicted badly, but can be encoded.
      splits: the token ids of train, validation and test.
      batches: the training batch of every step.
    """

    corpus: Corpus
    vocab: Vocab
    splits: Splits
    batches: Batches


def load_dataset(config: Config, *, progress: ProgressFn = no_progress) -> Dataset:
    """Reads and encodes the text, splits it, and defines the training batches.

    Downloads and notices about the text are logged to the logger `charjax`.

    Args:
      config: `data`, and `seed` for the order of the batches.
      progress: called during a download with the bytes received and the bytes expected
        (0: unknown).

    Raises:
      InputError: the text is missing, malformed or too short.
      HostError: the corpus can be neither found nor downloaded.
    """
    data = config.data
    corpus = load_corpus(data, progress=progress)
    vocab = Vocab.from_text(corpus.text, order=data.vocabulary, unit=data.unit, unk=data.unk)
    if len(vocab.characters) == 1:
        _logger.warning(
            "NOTICE: %s has only one distinct character; there is nothing to learn", corpus.name
        )
    splits = split(vocab.encode_corpus(corpus.text), corpus.document_starts, data.split)
    return Dataset(corpus, vocab, splits, make_batches(data, *splits.train, config.seed))
