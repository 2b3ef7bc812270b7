"""The samples of a run."""

from __future__ import annotations

import re

import pytest

from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.train.samples import check_prompt

from .tiny import config_of


@pytest.mark.parametrize("character", ["x", ";", " "])
def test_a_prompt_with_an_unknown_character_is_refused_by_name(character):
    config = config_of(sample={"prompt": f"a{character}", "num_chars": 3})
    message = (
        f"config.sample.prompt={config.sample.prompt!r}: not in the vocabulary: "
        f"U+{ord(character):04X} {character!r} (1x); choose another"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        check_prompt(config, Vocab(("a",), "codepoint", unk=False))
