"""The options of dynamic evaluation, known without JAX for the flags of `charjax score`."""

from __future__ import annotations

from dataclasses import dataclass

from charjax.schema import check_flags, number


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
