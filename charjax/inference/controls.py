"""What a sampled text may hold, and where it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from charjax.data.vocab import Vocab, check_surrogates, text_of_unit
from charjax.errors import InputError
from charjax.inference.sampling import Sampling
from charjax.schema import check_flags, number

_MAX_STOPS = 64


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What a sampled text may hold, and where it ends; all off by default.

    A line is what stands between two newlines; of a model of documents, it is a document.

    Attributes:
      stop: a text ends before the first of these that occurs in it.
      until_lines: a text ends after so many lines; 0: off.
      forbid: characters that are never sampled.
      only: the characters that may be sampled; "": all.
      unique: a line that the text has already is left out.
      new: a line of the training text is left out.
      max_copy: no passage of more characters is copied from the training text; 0: off. A text
        ends where every character would copy one.

    Raises:
      InputError: a value is out of range, or they leave no character.
    """

    stop: tuple[str, ...] = ()
    until_lines: int = number(0, 0, 10**6)
    forbid: str = ""
    only: str = ""
    unique: bool = False
    new: bool = False
    max_copy: int = number(0, 0, 1000)

    def __post_init__(self) -> None:
        is_tuple = isinstance(self.stop, tuple | list)  # and not one text
        if not is_tuple or not all(isinstance(text, str) for text in self.stop):
            raise InputError(f"--stop={self.stop!r}: must be a tuple of texts")
        if "" in self.stop:
            raise InputError("--stop=: is empty; give the text to end before")
        if len(self.stop) > _MAX_STOPS:
            raise InputError(f"--stop: is given {len(self.stop)} times; at most {_MAX_STOPS}")
        check_flags(self)
        if self.only and not set(self.only) - set(self.forbid):
            raise InputError(
                f"--forbid={self.forbid}: leaves none of --only={self.only}; leave one character"
            )

    @property
    def selects_lines(self) -> bool:
        """Whether lines are left out."""
        return self.unique or self.new

    def restrict(self, sampling: Sampling, vocab: Vocab) -> Sampling:
        """The options with the characters of `forbid`, and those outside `only`, forbidden.

        Raises:
          InputError: a character is outside the vocabulary, or none is left.
        """
        characters, unwanted = vocab.characters, _ids(vocab, self.forbid, "--forbid")
        wanted = _ids(vocab, self.only, "--only") if self.only else range(len(characters))
        allowed = set(wanted) - set(unwanted)
        if not allowed:
            raise InputError(f"--forbid={self.forbid}: leaves no character; leave one")
        has_newline = any(characters[token] == "\n" for token in allowed)
        if self.until_lines and not (vocab.boundary or has_newline):
            raise InputError(
                f"--until_lines={self.until_lines}: the newline is forbidden, or not in the "
                "vocabulary, so that no line ends"
            )
        bias = tuple((token, -math.inf) for token in range(len(characters)) if token not in allowed)
        return replace(sampling, logit_bias=sampling.logit_bias + bias)

    def check_stops(self, sampling: Sampling, vocab: Vocab) -> None:
        """Raises InputError for a stop text with a character that is never sampled.

        Args:
          sampling: with what is forbidden, as from `restrict`.
          vocab: of the model.
        """
        known = set(vocab.characters)
        sampled = {c for i, c in enumerate(vocab.characters) if i not in sampling.forbidden}
        for stop in self.stop:
            check_surrogates(stop)
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
