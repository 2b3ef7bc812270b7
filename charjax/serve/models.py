"""A model that a server has: its name, its vocabulary and its engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from charjax.data.tokens.ids import check_ids
from charjax.inference.load import TrainedModel
from charjax.inference.texts.prompt import Prompt, encode_prompt
from charjax.runtime.paths import without_folders
from charjax.serve.engine import Engine
from charjax.serve.logprobs import BOUNDARY


@dataclass(frozen=True)
class ServedModel:
    """A model by its name.

    Attributes:
      name: by which clients ask for it.
      trained: the model.
      engine: writes its texts.
      created: when the server loaded it, seconds since 1970.
    """

    name: str
    trained: TrainedModel
    engine: Engine
    created: int

    def prompt_of_ids(self, ids: Sequence[int]) -> Prompt:
        """A prompt that is given as ids; none at all is the start token.

        Raises:
          InputError: an id is outside the vocabulary.
        """
        vocab = self.trained.vocab
        given = np.array(ids or [vocab.start], np.int32)
        check_ids(given, len(vocab))
        return Prompt(given, int(not ids))

    def tokenize(self, text: str, *, add_start: bool, unknown: str) -> list[int]:
        """The ids of a text, with the start token that a prompt would have if `add_start`.

        The string `BOUNDARY` alone is the document boundary.
        """
        vocab = self.trained.vocab
        if text == BOUNDARY and vocab.boundary_id is not None:
            return [vocab.boundary_id]
        prompt = encode_prompt(self.trained, text, unknown)
        ids: list[int] = prompt.ids[0 if add_start else prompt.text_start :].tolist()
        return ids

    @property
    def start_string(self) -> str:
        """The string of which `tokenize` makes the start token."""
        vocab = self.trained.vocab
        return BOUNDARY if vocab.boundary else vocab.characters[vocab.start]

    def to_json(self) -> dict[str, Any]:
        """The model in the list of models."""
        trained, vocab = self.trained, self.trained.vocab
        model = trained.config.model
        about = {
            "cell": model.cell,
            "layers": model.layers,
            "hidden": model.hidden,
            "vocab_size": len(vocab),
            "step": trained.step,
            "val_loss": trained.val_loss,
            "corpus": without_folders(trained.run.corpus.name),
            "start": self.start_string,
            "characters": "".join(vocab.characters),
            "unit": vocab.unit,
            "documents": vocab.boundary,
        }
        names = {"id": self.name, "object": "model", "created": self.created}
        return names | {"owned_by": "charjax", "charjax": about}
