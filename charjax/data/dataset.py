"""A text dataset: the corpus, its vocabulary, its splits, and the training batches."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from charjax.conditions import for_dataset
from charjax.config import Config
from charjax.data.batches import Batches, make_batches
from charjax.data.corpus import Corpus, load_corpus
from charjax.data.packed.store import TextStore
from charjax.data.packed.tokens import PackedText
from charjax.data.read_ahead import ReadAhead
from charjax.data.shuffle import random_order
from charjax.data.splits import Splits, split, split_numbers
from charjax.data.tokens.encoded_text import BOUNDARY, EncodedText
from charjax.data.vocab import Vocab
from charjax.errors import HostError
from charjax.runtime.display import ProgressFn, counted, listed, no_progress

_ORDINARY_CONTROLS = "\t\n\r\f"
_MAX_SPLIT_ERROR = 0.05  # of the train fraction; a larger one is logged

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Everything that training and evaluation read.

    Attributes:
      corpus: the text.
      vocab: the characters of the whole text, validation and test included, so that each can
        be encoded; and the `known` ones of `load_dataset`.
      splits: the token ids of train, validation and test.
      batches: the training batch of every step.
    """

    corpus: Corpus
    vocab: Vocab
    splits: Splits
    batches: Batches


def load_dataset(
    config: Config, *, known: Sequence[str] = (), progress: ProgressFn = no_progress
) -> Dataset:
    """Reads and encodes the text, splits it, and defines the training batches.

    Downloads and notices about the text are logged to the logger `charjax`.

    Args:
      config: `data`, and `seed` for the order of the batches and of shuffled documents; also what
        `get_config` of a config file returns.
      known: characters to add to the vocabulary, whether the text has them or not. For a trained
        model give those of its vocabulary, as a fine-tuned one may know more than the text has.
      progress: called during a download with the bytes received and the bytes expected
        (0: unknown).

    Raises:
      InputError: the text is missing, malformed or too short, or a field is outside its limits.
      StoreError: the packed text is damaged.
      HostError: the corpus can be neither found nor downloaded, or memory does not suffice.
    """
    config = for_dataset(config)
    try:
        return _load(config, known, progress)
    except MemoryError as error:
        raise HostError(
            f"{config.data.path or config.data.corpus}: memory does not suffice to read this text, "
            "which takes about a byte a character; pack it by `charjax pack`, or give more memory"
        ) from error


def _load(config: Config, known: Sequence[str], progress: ProgressFn) -> Dataset:
    data = config.data
    corpus = load_corpus(data, progress=progress)
    if data.shuffle_documents and isinstance(corpus.content, EncodedText):
        shuffled = corpus.content.reordered(random_order(len(corpus.content.starts), config.seed))
        corpus = replace(corpus, content=shuffled, characters=shuffled.first_characters())
    vocab = Vocab.from_text(
        "".join(corpus.characters),
        known=known,
        order=data.vocabulary,
        unit=data.unit,
        unk=data.unk,
        boundary=corpus.rules.documents.boundary,
    )
    _report_characters(corpus, vocab)
    if isinstance(corpus.content, TextStore):
        content: EncodedText | PackedText = PackedText.open(corpus.content, vocab)
    else:
        content = corpus.content.recoded(vocab.characters, len(vocab))
    num_documents = None
    has_documents = corpus.rules.documents.mode != "none"  # the substitute of a corpus has none
    if data.split_by == "hash" and has_documents:
        numbers = split_numbers(content.document_hashes(), data.split)
        num_documents = np.bincount(numbers, minlength=len(data.split))
        content = content.reordered(np.argsort(numbers, kind="stable"))
    splits = split(content.tokens, content.starts, data.split, vocab.boundary_id, num_documents)
    batches = make_batches(data, splits.train, config.seed)
    if isinstance(content, EncodedText):
        corpus = replace(corpus, content=content)
    else:
        batches = ReadAhead(batches)
    dataset = Dataset(corpus, vocab, splits, batches)
    _report_splits(config, dataset)
    return dataset


def _report_characters(corpus: Corpus, vocab: Vocab) -> None:
    """Warns of a text with a single character, and of control characters."""
    if len(vocab.characters) == 1:
        _logger.warning(
            f"NOTICE: {corpus.name} has only one distinct character; there is nothing to learn"
        )
    limit = "\x20" if vocab.unit == "byte" else "\xa0"  # byte 0x80 and above: part of a character
    controls = [
        c
        for c in sorted(vocab.characters)
        if c not in _ORDINARY_CONTROLS and (c < " " or "\x7f" <= c < limit)
    ]
    if controls:
        content = corpus.content
        counts = content.counts() if isinstance(content, EncodedText) else Counter[str]()
        found = [f"U+{ord(c):04X}" + f" ({counts[c]:,}x)" * (counts[c] > 0) for c in controls]
        _logger.warning("NOTICE: %s has control characters: %s", corpus.name, listed(found))


def _report_splits(config: Config, dataset: Dataset) -> None:
    """Warns of duplicate documents, of no validation loss, of splits far from the fractions."""
    data, corpus, (train, val, _) = config.data, dataset.corpus, dataset.splits
    if corpus.num_documents > 1 and isinstance(corpus.content, EncodedText):
        _report_duplicates(corpus.content, dataset.splits)
    if data.split[1] and val.num_targets < 1:
        patience = config.train.patience
        no_effect = f", and train.patience={patience} has no effect" if patience else ""
        _logger.warning(
            f"NOTICE: the validation split of {corpus.name} has "
            f"{counted(len(val.ids), 'character')}, too few to predict one: there is no "
            f"validation loss{no_effect}; make its fraction in config.data.split larger"
        )
    actual = train.num_targets / max(1, sum(split.num_targets for split in dataset.splits))
    if abs(actual - data.split[0]) > _MAX_SPLIT_ERROR and corpus.num_documents > 1:
        _logger.warning(
            f"NOTICE: documents are not cut: the train split has {actual:.2f} of the text instead "
            f"of {data.split[0]:.2f}"
        )


def _report_duplicates(content: EncodedText, splits: Splits) -> None:
    """Warns of validation and test documents that are in the train split too."""
    edges = np.append(content.starts, len(content.tokens) - (BOUNDARY in content.alphabet))
    tokens = content.tokens.data  # sliced faster than an array
    documents = (tokens[a:b].tobytes() for a, b in pairwise(edges))
    hashes = np.fromiter(map(hash, documents), np.int64, len(content.starts))
    ends = np.cumsum([len(part.document_starts) for part in splits])
    train, val, test = np.split(hashes, ends[:2])
    train.sort()
    for name, part in (("validation", val), ("test", test)):
        part.sort()  # in place, where np.isin makes several copies
        first, last = (np.searchsorted(train, part, side) for side in ("left", "right"))
        if duplicates := np.count_nonzero(first < last):
            _logger.warning(
                f"NOTICE: documents of the {name} split that are in the train split too: "
                f"{duplicates:,} of {len(part):,}"
            )
