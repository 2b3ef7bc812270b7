"""Text that a trained model is given, prompts and texts to score, read as the run's own text."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable

from charjax.data.packed.tokens import TokenIds
from charjax.data.reading.decoding import BOM, FLAG_PREFIX, unix_newlines
from charjax.data.reading.documents import Piece
from charjax.data.reading.reader import TextReader
from charjax.data.reading.rules import ReadingRules
from charjax.data.reading.units import check_text, text_of_unit
from charjax.data.sources.file_search import find_files
from charjax.data.sources.files import blocks_of, read_files
from charjax.data.sources.raw_text import RawText
from charjax.data.tokens.encoded_text import BOUNDARY
from charjax.data.tokens.text_encoder import encode_pieces
from charjax.data.vocab import Vocab
from charjax.errors import InputError


def read_tokens(
    file: str,
    rules: ReadingRules,
    vocab: Vocab,
    *,
    unknown: str,
    are_markers_required: bool,
) -> TokenIds:
    """The token ids of a text.

    An id takes a byte if there are at most 256 tokens. The text itself is not kept in memory; if it
    has characters outside the vocabulary, one document at a time is.

    Args:
      file: a path as in `data.path`, or "-" for standard input.
      rules: those of the run, changed by the options for this file.
      vocab: that of the run. If it has a boundary token, the ids have one before each document,
        and one after the last.
      unknown: as for `Vocab.encode`.
      are_markers_required: see `TextReader`.

    Raises:
      InputError: the file is missing, malformed, or has characters outside the vocabulary.
      HostError: it cannot be read.
    """
    if file == "-":
        files: Iterable[RawText] = [RawText("standard input", blocks_of(sys.stdin.buffer))]
    else:
        files = read_files(find_files(file, "--file"), "--file", are_utf8=rules.is_utf8)
    reader = TextReader(rules, are_markers_required=are_markers_required, prefix=FLAG_PREFIX)
    is_one = rules.documents.mode == "none"
    content = encode_pieces(file, reader.pieces(files), boundary=vocab.boundary, is_one=is_one)
    reader.documents.check_delimiter()
    reader.finish()
    known = {*vocab.characters, BOUNDARY}
    if vocab.unit == "codepoint" and not known.issuperset(content.alphabet):
        documents = (Piece(normalize_form(text, vocab), (0,)) for text in content.documents())
        content = encode_pieces(file, documents, boundary=vocab.boundary)
    if not known.issuperset(content.alphabet) and (unknown != "unk" or vocab.unk_id is None):
        counts = content.counts()
        missing = Counter({c: count for c, count in counts.items() if c not in known})
        # With newlines=unix no text has one.
        remedy = "; for line ends of Windows give --newlines=unix" if "\r" in missing else ""
        raise InputError(f"--file={file}: {vocab.unknown_message(missing)}{remedy}")
    return content.recoded(vocab.characters, len(vocab), vocab.unk_id).tokens


def prepare_prompt(text: str, rules: ReadingRules, vocab: Vocab) -> str:
    """Normalizes a prompt as the run's text: line ends, case, Unicode normal form.

    A byte order mark at its start is dropped, as in a text.

    Raises:
      InputError: a character is half of a surrogate pair, or the text is no str.
    """
    check_text(text)
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
