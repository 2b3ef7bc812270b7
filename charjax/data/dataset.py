"""A config's text, ready for training: read, given a vocabulary, split, cut into batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from charjax.config import Config
from charjax.data.batches import Batches, Split, make_batches, split
from charjax.data.corpus import Corpus, load_corpus
from charjax.data.vocab import Vocab


@dataclass(frozen=True, eq=False)
class Dataset:
    """Everything that the data room makes of a config.

    The vocabulary is that of the whole text, validation and test included: a
    character seen only there is predicted badly, but it can be read.
    """

    corpus: Corpus
    vocab: Vocab
    parts: Split
    batches: Batches


def load_dataset(
    config: Config, *, report: Callable[[str], None], progress: Callable[[int, int], None]
) -> Dataset:
    """Reads the corpus and cuts it up.

    Args:
      config: `data`, and the `seed` of the batches' order.
      report: is told what a person must know, one line each.
      progress: of a download, in bytes (done, total).

    Raises:
      InputError: the text is missing, malformed or too short.
      HostError: the corpus can be neither found nor downloaded.
    """
    data = config.data
    corpus = load_corpus(data, report=report, progress=progress)
    vocab = Vocab.from_text(corpus.text, order=data.vocabulary, unit=data.unit, unk=data.unk)
    if len(vocab.symbols) == 1:
        report(f"{corpus.name}: has one symbol only, so that nothing can be learnt from it")
    parts = split(vocab.encode_symbols(corpus.text), corpus.starts, data.split)
    return Dataset(corpus, vocab, parts, make_batches(data, *parts.train, config.seed))
