"""Reads the vocabulary file of a model of another framework."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.runtime.display import counted, listed
from charjax.runtime.files import read_linked

_logger = logging.getLogger(__name__)
_UNK = "[UNK]"
_MAX_TEXT_BYTES = 2**30


class ForeignVocab(NamedTuple):
    """A vocabulary of another framework, converted.

    Attributes:
      vocab: the vocabulary of charjax, with [UNK] last.
      order: for each of its ids, the id of the same token in the other framework.
    """

    vocab: Vocab
    order: list[int]


def read_vocabulary(file: Path, vocab_size: int) -> ForeignVocab:
    """The vocabulary in a file.

    Args:
      file: a .json file or a text. The JSON is the vocabulary.json of an export of charjax, a list
        of characters in the order of their ids (such as Keras' `StringLookup.get_vocabulary()`),
        or an object {character: id}; one entry may be [UNK]. The vocabulary of a text is its
        distinct characters in sorted order.
      vocab_size: that of the model. If it is one more than the characters of a text, id 0 is
        taken to be [UNK], which is logged.

    Raises:
      InputError: the file is none of these, or the vocabulary has another size.
      OSError: it cannot be read.
    """
    try:
        text = read_linked(file, _MAX_TEXT_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("not valid UTF-8") from None
    is_json = file.suffix.lower() == ".json"
    found = _from_json(text) if is_json else _from_text(text, vocab_size)
    if len(found.vocab) != vocab_size:
        raise InputError(
            f"has {counted(len(found.vocab), 'token')}, the model {vocab_size}; give the "
            "vocabulary that it was trained with"
        )
    return found


def _from_text(text: str, vocab_size: int) -> ForeignVocab:
    tokens = sorted(set(text))
    if len(tokens) == vocab_size - 1:
        characters = counted(len(tokens), "character")
        message = "the text has %s, the model %d tokens; id 0 is taken to be [UNK]"
        _logger.info(message, characters, vocab_size)
        tokens = [_UNK, *tokens]
    return _from_tokens(tokens)


def _from_json(text: str) -> ForeignVocab:
    try:
        values = json.loads(text.removeprefix("\ufeff"))  # a byte order mark
    except (ValueError, RecursionError):
        raise InputError("not JSON") from None
    if isinstance(values, dict) and "symbols" in values:
        vocab = Vocab.from_json({k: value for k, value in values.items() if k != "start"})
        return ForeignVocab(vocab, list(range(len(vocab))))
    if isinstance(values, dict):
        ids = values.values()
        if not all(type(i) is int for i in ids) or set(ids) != set(range(len(ids))):
            raise InputError(f"is not {{character: id}}: its ids must be 0 to {len(values) - 1}")
        values = sorted(values, key=values.__getitem__)
    return _from_tokens(values)


def _from_tokens(tokens: Any) -> ForeignVocab:
    """The vocabulary of a list of tokens, ordered by id; [UNK] is moved to the end."""
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError("must be a list of characters or {character: id}")
    strange = [token for token in tokens if len(token) != 1 and token != _UNK]
    if strange or tokens.count(_UNK) > 1:
        shown = listed([repr(token[:20]) for token in strange], 4) or "two [UNK]"
        raise InputError(
            f"has {shown}: every token must be one character, or [UNK]; write a character that no "
            "text has for another special token"
        )
    order = sorted(range(len(tokens)), key=lambda i: tokens[i] == _UNK)
    characters = tuple(tokens[i] for i in order if tokens[i] != _UNK)
    return ForeignVocab(Vocab(characters, "codepoint", _UNK in tokens), order)
