"""The text that a run was trained on, read again: to be verified, scored or not repeated."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise
from typing import TypeVar

from charjax.checkpoint.meta import RunMeta
from charjax.data.corpus import Corpus, load_corpus
from charjax.data.dataset import Dataset, load_dataset
from charjax.data.packed.store import TextStore
from charjax.data.sources.named_corpora import is_downloaded
from charjax.data.splits import Splits
from charjax.errors import CharjaxError, HostError, InputError, StoreError
from charjax.inference.load import TrainedModel

_Loaded = TypeVar("_Loaded", Corpus, Dataset)

_logger = logging.getLogger(__name__)


def verify_text(run: RunMeta) -> None:
    """Reads the text of a run again, not from the cache; logs the verdict, or why there is none.

    Downloads nothing. Of a packed text the index is read, which has the digests of all shards;
    `charjax verify STORE` compares the shards with them.

    Raises:
      StoreError: it is another text than the run was trained on, or the packed text is damaged.
    """
    data, name = run.config.data, run.corpus.name
    if run.is_converted:
        return
    if not data.path and not is_downloaded(data.corpus):
        _logger.warning(f"{name}: the text is not compared: it was not downloaded to this machine")
        return
    try:
        corpus = load_corpus(data, use_cache=False)
    except (InputError, HostError) as error:
        _logger.warning(f"{name}: the text is not compared: {error}")
        return
    if problem := _difference(corpus, run.corpus.sha256):
        raise StoreError(problem)
    if isinstance(corpus.content, TextStore):
        _logger.info(f"{name}: its index is good: `charjax verify {name}` reads the packed text")
    else:
        _logger.info(f"{name}: good")


def training_text(trained: TrainedModel, flag: str) -> Corpus:
    """The text of a model's run, validation and test included.

    Args:
      trained: the model.
      flag: that needs the text, for messages.

    Raises:
      InputError: it is gone, not the text that the run was trained on, or not known.
      HostError: it can be neither found nor downloaded.
    """
    corpus = _if_the_same(trained, partial(load_corpus, trained.config.data), flag)
    if isinstance(corpus.content, TextStore):
        raise InputError(
            f"{flag}: {corpus.name} is a packed text, too large to compare samples with; sample "
            f"without {flag}"
        )
    return corpus


def training_splits(trained: TrainedModel, flag: str, otherwise: str) -> Splits:
    """The parts of the text of a model's run, as `training_text` has it.

    Args:
      trained: the model.
      flag: that needs the text, for messages.
      otherwise: another way out, for messages.
    """
    return _if_the_same(trained, partial(_dataset, trained), flag, f"; or {otherwise}").splits


@lru_cache(maxsize=1)
def _dataset(trained: TrainedModel) -> Dataset:
    """Read once, with its notices, where two parts of it are needed."""
    return load_dataset(trained.config, known=trained.vocab.characters)


def _if_the_same(
    trained: TrainedModel, load: Callable[[], _Loaded], flag: str, otherwise: str = ""
) -> _Loaded:
    """What is loaded, if its text is the one that the model was trained on."""
    source = trained.run.source
    if source and trained.run.is_converted:
        raise InputError(
            f"{flag}: needs the text that this model was trained on, which is not known, as it "
            f"was converted from {source.kind}{otherwise}"
        )
    try:
        loaded = load()
    except CharjaxError as error:
        raise type(error)(
            f"{flag}: needs the text that this run was trained on: {error}{otherwise}"
        ) from None
    corpus = loaded if isinstance(loaded, Corpus) else loaded.corpus
    if problem := _difference(corpus, trained.run.corpus.sha256):
        raise InputError(f"{flag}: {problem}{otherwise}")
    return loaded


def _difference(corpus: Corpus, sha256: str) -> str:
    """The message that a run was trained on another text, of this digest; "" if it was not."""
    if corpus.sha256 == sha256:
        return ""
    return (
        f"{corpus.name} is not the text that this run was trained on (SHA-256 {sha256[:12]}, now "
        f"{corpus.sha256[:12]}); bring that text back"
    )


def known_lines(trained: TrainedModel, corpus: Corpus) -> frozenset[str]:
    """The lines of the training text, for `Controls.new`; the documents of a model of those."""
    if not trained.vocab.boundary:
        return frozenset(decoded(trained, corpus.text).split("\n"))
    text = corpus.text  # decoded by each access
    starts = [*corpus.document_starts.tolist(), len(text)]
    return frozenset(decoded(trained, text[a:b]) for a, b in pairwise(starts))


def decoded(trained: TrainedModel, text: str) -> str:
    """A `Corpus.text` as samples are decoded: bytes are UTF-8."""
    if trained.vocab.unit == "codepoint":
        return text
    return text.encode("latin-1").decode("utf-8", errors="replace")
