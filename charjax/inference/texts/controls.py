"""Token constraints: the characters of a text's controls as tokens of a model."""

from __future__ import annotations

import math
from dataclasses import replace

from charjax.data.reading.units import check_text, text_of_unit
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.inference.options import Controls, Sampling


def restrict(sampling: Sampling, controls: Controls, vocab: Vocab) -> Sampling:
    """The options with the characters of `forbid`, and those outside `only`, forbidden.

    Raises:
      InputError: a character is outside the vocabulary, or none is left.
    """
    characters, unwanted = vocab.characters, _ids(vocab, controls.forbid, "--forbid")
    wanted = _ids(vocab, controls.only, "--only") if controls.only else range(len(characters))
    allowed = set(wanted) - set(unwanted)
    if not allowed:
        raise InputError(f"--forbid={controls.forbid}: leaves no character; leave one")
    has_newline = any(characters[token] == "\n" for token in allowed)
    if controls.until_lines and not (vocab.boundary or has_newline):
        raise InputError(
            f"--until_lines={controls.until_lines}: the newline is forbidden, or not in the "
            "vocabulary, so that no line ends"
        )
    bias = tuple((token, -math.inf) for token in range(len(characters)) if token not in allowed)
    return replace(sampling, logit_bias=sampling.logit_bias + bias)


def check_stops(controls: Controls, sampling: Sampling, vocab: Vocab) -> None:
    """Raises InputError for a stop text with a character that is never sampled.

    Args:
      controls: with the stop texts.
      sampling: with what is forbidden, as from `restrict`.
      vocab: of the model.
    """
    known = set(vocab.characters)
    sampled = {c for i, c in enumerate(vocab.characters) if i not in sampling.forbidden}
    for stop in controls.stop:
        check_text(stop)
        for character in stop:
            if vocab.unit == "byte" and character == "\ufffd":  # as invalid bytes are decoded
                continue
            tokens = set(text_of_unit(character, vocab.unit))
            if not tokens <= sampled:
                why = "forbidden" if tokens <= known else "not in the vocabulary of the model"
                raise InputError(
                    f"--stop={stop}: {character!r} is {why}, so that no text ends there"
                )


def _ids(vocab: Vocab, characters: str, flag: str) -> list[int]:
    """The ids of the characters of a flag."""
    if vocab.unit == "byte" and not characters.isascii():
        raise InputError(
            f"{flag}={characters}: the tokens of this model are bytes; give ASCII characters"
        )
    for character in characters:
        if character not in vocab.characters:
            raise InputError(
                f"{flag}={characters}: {character!r} is not in the vocabulary of the model"
            )
    return [vocab.characters.index(character) for character in characters]
