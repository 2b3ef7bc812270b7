"""Normalizes prompts, and other texts that a trained model reads, as the run's own text."""

from __future__ import annotations

import unicodedata

from charjax.data.reading.decoding import BOM, unix_newlines
from charjax.data.reading.rules import ReadingRules
from charjax.data.reading.units import check_surrogates, text_of_unit
from charjax.data.vocab import Vocab


def prepare_prompt(text: str, rules: ReadingRules, vocab: Vocab) -> str:
    """Normalizes a prompt as the run's text: line ends, case, Unicode normal form.

    A byte order mark at its start is dropped, as in a text.

    Raises:
      InputError: a character is half of a surrogate pair.
    """
    check_surrogates(text)
    text = text.removeprefix(BOM)
    if rules.newlines == "unix":
        text = "".join(unix_newlines([text]))
    if rules.lowercase:
        text = text.encode().lower().decode() if rules.unit == "byte" else text.lower()
    return normalize_form(text, vocab)


def normalize_form(text: str, vocab: Vocab) -> str:
    """Converts a text to NFC or NFD if the vocabulary has more of its characters then.

    A text that the vocabulary covers, such as the run's own, is returned unchanged.
    """
    if text.isascii() or not _unknown(text, vocab):
        return text
    forms = [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]
    return min(forms, key=lambda form: len(_unknown(form, vocab)))  # the first of equals


def _unknown(text: str, vocab: Vocab) -> set[str]:
    """The distinct characters, or bytes, that are not in the vocabulary."""
    return set(text_of_unit(text, vocab.unit)).difference(vocab.characters)
