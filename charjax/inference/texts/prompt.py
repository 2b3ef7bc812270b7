"""A prompt: the tokens that a text continues."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from charjax.data.new_text import prepare_prompt
from charjax.data.vocab import Vocab
from charjax.inference.load import TrainedModel


class Prompt(NamedTuple):
    """What a text continues.

    Attributes:
      ids: at least one.
      text_start: where its text begins among them: after the start token, if that was added.
    """

    ids: Int[np.ndarray, " prompt"]
    text_start: int

    def text(self, vocab: Vocab) -> str:
        """Its text, as the model reads it."""
        return vocab.decode(self.ids[self.text_start :])


def encode_prompt(trained: TrainedModel, text: str, unknown: str) -> Prompt:
    """The prompt of a text, which is read as the model's training text was.

    Raises:
      InputError: it has characters outside the vocabulary, unless `unknown` is "unk".
    """
    vocab = trained.vocab
    text = prepare_prompt(text, trained.run.reading, vocab)
    ids = vocab.encode_prompt(text, unknown=unknown)
    return Prompt(ids, int(vocab.boundary or not text))
