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
        (str, 1, "x: must be a string, not 1"),
        (bool, 1, "x: must be true or false, not 1"),
        (int, "a", "x: must be an integer of 64 bits, not 'a'"),
        (int, 2**63, f"x: must be an integer of 64 bits, not {2**63}"),
        (float, float("nan"), "x: must be a finite number, not nan"),
        (float | None, "a", "x: must be a finite number, not 'a'"),
        (list[int], 1, "x: must be a list, not 1"),
        (tuple[int, ...], 1, "x: must be a list, not 1"),
        (Mapping[str, Any], [], "x: must be a JSON object, not []"),
        (dict[str, int], [], "x: must be a JSON object, not []"),
        (_Tuple, [], "x: must be a JSON object, not []"),
        (_Data, {"inner": 1}, "x.inner: must be a JSON object, not 1"),
    ],
)
def test_a_message_names_a_type_in_words_of_json(wanted, value, words):
    with pytest.raises(InputError) as raised:
        parse(wanted, value, "x")
    assert str(raised.value) == words
