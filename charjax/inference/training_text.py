"""The text that a run was trained on, read again to keep samples from repeating it."""

from __future__ import annotations

from itertools import pairwise

from charjax.data.corpus import Corpus, load_corpus
from charjax.data.store import TextStore
from charjax.errors import CharjaxError, InputError
from charjax.inference.load import TrainedModel


def training_text(trained: TrainedModel, flag: str) -> Corpus:
    """The text of a model's run, validation and test included.

    Args:
      trained: the model.
      flag: that needs the text, for messages.

    Raises:
      InputError: it is gone, not the text that the run was trained on, or not known.
      HostError: it can be neither found nor downloaded.
    """
    require_known_text(trained, flag)
    recorded = trained.meta["corpus"]["sha256"]
    try:
        corpus = load_corpus(trained.config.data)
    except CharjaxError as error:
        raise type(error)(f"{flag}: needs the text that this run was trained on: {error}") from None
    if corpus.sha256 != recorded:
        raise InputError(
            f"{flag}: {corpus.name} is not the text that this run was trained on (SHA-256 "
            f"{recorded[:12]}, now {corpus.sha256[:12]}); bring that text back"
        )
    if isinstance(corpus.content, TextStore):
        raise InputError(
            f"{flag}: {corpus.name} is a packed text, too large to compare samples with; sample "
            f"without {flag}"
        )
    return corpus


def require_known_text(trained: TrainedModel, flag: str, otherwise: str = "") -> None:
    """Raises InputError, which names another way out, for a model whose text is not known."""
    if trained.is_converted:
        kind = trained.meta["source"]["kind"]
        raise InputError(
            f"{flag}: needs the text that this model was trained on, which is not known, as it "
            f"was converted from {kind}" + (f"; {otherwise}" if otherwise else "")
        )


def known_lines(trained: TrainedModel) -> frozenset[str]:
    """The lines of the training text, for `Controls.new`; of a model of documents, the documents.

    Raises:
      InputError: the text is gone, or another one; so does HostError.
    """
    corpus = training_text(trained, "--new")
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
