"""What a message says of a value of JSON that has the wrong type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from charjax.errors import InputError
from charjax.schema import parse


class _Tuple(NamedTuple):
    inner: int


@dataclass
class _Data:
    inner: _Tuple


@pytest.mark.parametrize(
    ("wanted", "value", "words"),
    [
        (str, 1, "x=1: must be a string"),
        (bool, 1, "x=1: must be true or false"),
        (int, "a", "x='a': must be an integer of 64 bits"),
        (int, 2**63, f"x={2**63}: must be an integer of 64 bits"),
        (float, float("nan"), "x=nan: must be a finite number"),
        (float | None, "a", "x='a': must be a finite number"),
        (list[int], 1, "x=1: must be a list"),
        (tuple[int, ...], 1, "x=1: must be a list"),
        (Mapping[str, Any], [], "x=[]: must be a mapping of names to values"),
        (dict[str, int], [], "x=[]: must be a mapping of names to values"),
        (_Tuple, [], "x=[]: must be a mapping of names to values"),
        (_Data, {"inner": 1}, "x.inner=1: must be a mapping of names to values"),
    ],
)
def test_a_message_names_a_type_in_words_of_json(wanted, value, words):
    with pytest.raises(InputError) as raised:
        parse(wanted, value, "x")
    assert str(raised.value) == words
