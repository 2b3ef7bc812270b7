"""Decodes and normalizes the characters of a file, block by block, in constant memory."""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import logging
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from charjax.data.reading.encoding_guess import guess_encoding, guess_utf8, guess_utf16
from charjax.data.sources.raw_text import BYTE_ORDER_MARKS, RawText
from charjax.errors import InputError

# What messages put before the names of options, which come from a config or from flags.
CONFIG_PREFIX, FLAG_PREFIX = "config.data.", "--"
BOM = "\ufeff"
_BLOCK = 1 << 17  # bytes decoded at a time: what they become fits into a cache of the CPU
_HEAD = 1 << 16  # bytes at the start of a file, from which its encoding is guessed for a message
_MAX_WORD = 1 << 16  # characters without a space that wait for more; what is longer is no word

# How compressed files begin, by the suffix that has them decompressed.
_COMPRESSED = {
    ".gz": b"\x1f\x8b",
    ".bz2": b"BZh",
    ".xz": b"\xfd7zXZ",
    ".zst": b"\x28\xb5\x2f\xfd",
}

_logger = logging.getLogger(__name__)


def is_utf8(encoding: str) -> bool:
    """Whether a `data.encoding` is UTF-8; then a byte order mark may name another one."""
    return encoding.lower().replace("_", "-") in ("utf-8", "utf8")


def split_blocks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks that are neither empty nor large."""
    for block in blocks:
        for begin in range(0, len(block), _BLOCK):
            yield block[begin : begin + _BLOCK]


def decode(file: RawText, encoding: str, prefix: str) -> Iterator[str]:
    """The characters of a file, its byte order mark included.

    Args:
      file: the undecoded file.
      encoding: as in `data.encoding`.
      prefix: before the names of options in messages, `CONFIG_PREFIX` or `FLAG_PREFIX`.

    Raises:
      InputError: the file is not in this encoding, or there is no such encoding.
    """
    blocks = split_blocks(file.blocks)
    head = b""
    while len(head) < _HEAD and (block := next(blocks, b"")):
        head += block
    if is_utf8(encoding) and not file.offset and head[257:262] == b"ustar":
        raise InputError(f"{file.origin}: is a tar archive; unpack it, and name what is in it")
    name = encoding if file.offset else _actual_encoding(file.origin, head, encoding)
    decoder = _make_decoder(file.origin, name, prefix)
    is_other = not (file.offset or codecs.lookup(name).name.startswith("utf"))
    if is_other and not head.isascii() and guess_utf8(head):
        _logger.warning(
            f"NOTICE: {file.origin}: is read as {name}, but its bytes are UTF-8; set "
            f"{prefix}encoding=utf-8"
        )
    num_bytes = file.offset
    for block in itertools.chain([head], blocks, [b""]):
        num_bytes += len(block)
        try:
            text: str = decoder.decode(block, final=not block)
        except UnicodeError as error:
            if not isinstance(error, UnicodeDecodeError) or "BOM" in error.reason:
                # UTF-16 without a byte order mark; Python 3.13 gives this error a position.
                remedy = _encoding_remedy(head, name, prefix)
                raise InputError(f"{file.origin}: is not {name} ({error}); {remedy}") from error
            sample = head if error.object in head else head + error.object
            remedy = _encoding_remedy(sample, name, prefix)
            offset = num_bytes - len(error.object) + error.start
            raise InputError(
                f"{file.origin}: byte 0x{error.object[error.start]:02X} at offset {offset} is not "
                f"valid {name}; {remedy}"
            ) from error
        if b"\0" in block and "\0" in text and guess_utf16(head):
            remedy = _encoding_remedy(head, name, prefix)
            raise InputError(f"{file.origin}: is not {name}; {remedy}")
        yield text


def unix_newlines(chunks: Iterable[str]) -> Iterator[str]:
    """The text with CR LF and CR replaced by LF."""
    decoder = io.IncrementalNewlineDecoder(None, translate=True)
    yield from map(decoder.decode, chunks)
    yield decoder.decode("", final=True)


def split_at(chunks: Iterable[str], marker: str) -> Iterator[tuple[str, bool]]:
    """The text in parts, each with whether it is from the first marker on."""
    rest, is_found = "", False
    for chunk in chunks:
        text = rest + chunk
        if not is_found and (position := text.find(marker)) >= 0:
            yield text[:position], False
            text, is_found = text[position:], True
        # The end of a chunk may part the marker.
        cut = len(text) if is_found else max(0, len(text) - len(marker) + 1)
        yield text[:cut], is_found
        rest = text[cut:]
    yield rest, is_found


def lower(chunks: Iterable[str], unit: str) -> Iterator[str]:
    """The text in lower case; of bytes, the ASCII letters only."""
    if unit == "byte":
        yield from (chunk.encode("latin-1").lower().decode("latin-1") for chunk in chunks)
        return
    # The lower case of a sigma depends on the letters around it: the last word waits for more, and
    # the character before it is kept.
    before = rest = ""
    for chunk in chunks:
        text = rest + chunk
        cut = max(text.rfind(" "), text.rfind("\n")) + 1
        if len(text) - cut > _MAX_WORD:
            ends = (end for end in range(len(text), cut, -1) if _ends_context(text[end - 1]))
            cut = next(ends, len(text))
        yield _lower_after(before, text[:cut])
        before, rest = text[:cut][-1:] or before, text[cut:]
    yield _lower_after(before, rest)


def _ends_context(character: str) -> bool:
    """Whether no sigma before a character depends on what follows it."""
    return character != "\u03a3" and unicodedata.category(character) in ("Ll", "Lu", "Lo", "Nd")


def _lower_after(before: str, text: str) -> str:
    return (before + text).lower().removeprefix(before.lower())


def _actual_encoding(origin: str, head: bytes, encoding: str) -> str:
    """The encoding that a byte order mark names, else the given one."""
    if not is_utf8(encoding):
        return encoding
    name = next((name for mark, name in BYTE_ORDER_MARKS if head.startswith(mark)), encoding)
    if name != encoding:
        _logger.info("%s: read as %s, by its byte order mark", origin, name)
    return name


def _make_decoder(origin: str, encoding: str, prefix: str) -> Any:
    try:
        with contextlib.suppress(UnicodeDecodeError):
            b"\0".decode(encoding)  # refuses what encodes no text, such as base64
        return codecs.getincrementaldecoder(encoding)()
    except (LookupError, ValueError) as error:
        raise InputError(
            f"{origin}: cannot be decoded with {prefix}encoding={encoding!r}; "
            "name a text encoding that Python knows, such as utf-8"
        ) from error


def _encoding_remedy(data: bytes, encoding: str, prefix: str) -> str:
    """The advice of the message about a file in another encoding; names the likeliest one."""
    for suffix, mark in _COMPRESSED.items():
        if data.startswith(mark):
            return f"it is compressed: rename it to end with {suffix}"
    if data.startswith(b"PK\x03\x04"):
        return (
            "it is a zip archive: rename it to end with .zip, or unpack it; the text of a "
            "document, such as a .docx or .epub, save as .txt"
        )
    if data.startswith(b"PAR1"):
        return "it is Parquet: `charjax pack --field=NAME` reads the texts in it"
    if data.startswith(b"%PDF-"):
        return "it is a PDF: save its text as .txt"
    # The unit of a trained model cannot change.
    as_bytes = f", or {prefix}unit=byte" if prefix == CONFIG_PREFIX else ""
    guess = guess_encoding(data)
    if guess and codecs.lookup(guess).name == codecs.lookup(encoding).name:
        return f"the text around it is {guess}: correct the file{as_bytes}"
    if guess:
        return (
            f"it is likeliest {guess}: set {prefix}encoding={guess} and look at the result"
            + as_bytes
        )
    return f"set {prefix}encoding to the encoding of the file, such as latin-1{as_bytes}"
