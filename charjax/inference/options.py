"""The options of sampling and of dynamic evaluation, known without JAX for their flags."""

from __future__ import annotations

import math
from dataclasses import dataclass

from charjax.errors import InputError
from charjax.schema import check_flags, check_integer, number

MAX_CHARS, MAX_SAMPLES = 10**9, 10**6  # of a sample; of a prompt
_MAX_BIAS = 1e30  # beyond it, sums of biases and penalized logits could leave float32
_MAX_STOPS = 64


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    They act in this order: `logit_bias`, `repetition_penalty`, `min_p` at the
    temperature, `top_k`, `top_p` at the temperature.

    Attributes:
      temperature: divides the logits; 0 is greedy.
      top_k: keep the k likeliest tokens; 0 keeps all.
      top_p: keep the likeliest tokens that together have this probability; 1 keeps all.
      min_p: keep the tokens with at least this fraction of the likeliest one's probability
        (Nguyen et al. 2024); 0 keeps all.
      repetition_penalty: the logits of tokens read in the last `repetition_window` positions, the
        prompt's included, are divided by it where positive and multiplied where negative (Keskar
        et al. 2019); 1 changes nothing.
      repetition_window: in characters.
      seed: of the random numbers.
      logit_bias: pairs of (token id, number added to its logit); minus infinity forbids it.

    Raises:
      InputError: a value is out of range, or no integer where one is needed.
    """

    temperature: float = number(1.0, 0, 1e300, "0 (greedy) or a positive number")
    top_k: int = number(0)
    top_p: float = number(1.0, 0, 1, excludes_low=True)
    min_p: float = number(0.0, 0, 1)
    repetition_penalty: float = number(1.0, 0.1, 10)
    repetition_window: int = number(64, 1, 10**6)
    seed: int = number(0, 0, 2**32 - 1)
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        check_flags(self)
        try:
            pairs = [(token, float(bias)) for token, bias in self.logit_bias]
        except (TypeError, ValueError):
            raise InputError(
                f"logit_bias={self.logit_bias!r}: must be pairs of a token's id and a number"
            ) from None
        for token, bias in pairs:
            check_integer("logit_bias: token", token)
            if not (abs(bias) <= _MAX_BIAS or bias == -math.inf):
                raise InputError(
                    f"logit_bias of token {token}: {bias} must be from {-_MAX_BIAS} to "
                    f"{_MAX_BIAS}, or -inf"
                )

    @property
    def forbidden(self) -> frozenset[int]:
        """The tokens that `logit_bias` forbids."""
        return frozenset(token for token, bias in self.logit_bias if bias == -math.inf)


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


NO_CONTROLS = Controls()


def check_num_samples(num_samples: int) -> int:
    """A number of samples as one of Python; raises InputError for one that is out of range."""
    return check_integer("--num_samples", num_samples, 1, MAX_SAMPLES)


@dataclass(frozen=True, kw_only=True)
class DynamicOptions:
    """How the weights follow the text.

    Attributes:
      learning_rate: of a weight whose gradients have a root mean square well above `epsilon`.
      decay: the fraction of its difference to the trained value that a weight of average root
        mean square loses after each segment.
      epsilon: added to the root mean square.
      segment: characters between two updates. Gradients do not reach further back.

    Raises:
      InputError: a value is out of range, or no integer where one is needed.
    """

    learning_rate: float = number(3e-5, 0, 1)
    decay: float = number(2e-3, 0, 1)
    epsilon: float = number(2e-5, 1e-12, 1)
    segment: int = number(20, 1, 1024)

    def __post_init__(self) -> None:
        check_flags(self)
