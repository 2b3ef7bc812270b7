"""A text as a file of the cache, which is mapped to memory.

Its first line is a CRC-32 and JSON, which describes the text and has a CRC-32 of each part of the
arrays; then come the bytes of the arrays. A reader compares every CRC-32, and maps the arrays to
memory without a copy.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from charjax.data.reading import ReadingRules
from charjax.data.tokens import EncodedText

_PART = 1 << 22  # bytes that have one CRC-32
_THREADS = 4  # that compare parts
_ALIGNMENT = 8  # bytes, of the arrays in the file


class CachedText(NamedTuple):
    """A text in the cache.

    Attributes:
      content: its tokens.
      characters, chars, sha256, notice, rules: those of `charjax.data.corpus.Corpus`.
      messages: what was logged while it was read.
    """

    content: EncodedText
    characters: Sequence[str]
    chars: int
    sha256: str
    notice: str
    rules: ReadingRules
    messages: tuple[str, ...]


def read_cached(path: Path) -> CachedText:
    """The text of a file that `write_cached` wrote.

    Raises:
      CharjaxError, OSError, ValueError, LookupError: it is damaged, or cannot be read.
    """
    with open(path, "rb") as file:
        checksum, _, data = file.readline().partition(b" ")
        begin = file.tell()
    if int(checksum, 16) != zlib.crc32(data):
        raise ValueError("its first line is damaged")
    about = json.loads(data)
    starts = _map_array(path, begin, about["starts"])
    tokens = _map_array(path, begin + starts.nbytes, about["tokens"])
    return CachedText(
        EncodedText(tokens, tuple(about["alphabet"]), starts),
        about["characters"],
        about["chars"],
        about["sha256"],
        about["notice"],
        ReadingRules.from_json(about["rules"]),
        tuple(about["messages"]),
    )


def write_cached(file: IO[bytes], text: CachedText) -> None:
    """Writes a text into a file."""
    tokens, alphabet, starts = text.content
    about = text._asdict() | {
        "content": None,
        "characters": "".join(text.characters),
        "rules": text.rules.to_json(),
        "alphabet": alphabet,
        "starts": _describe_array(starts),
        "tokens": _describe_array(tokens),
    }
    data = json.dumps(about).encode()
    data += b" " * (-(len(data) + 10) % _ALIGNMENT) + b"\n"
    file.write(b"%08x %s" % (zlib.crc32(data), data))
    file.write(starts.data)
    file.write(tokens.data)


def _describe_array(array: np.ndarray) -> dict[str, Any]:
    """The JSON values that `_map_array` needs."""
    values = array.view(np.uint8)
    checksums = [zlib.crc32(values[part].data) for part in _parts(values.size)]
    return {"dtype": array.dtype.name, "size": array.size, "crc32": checksums}


def _map_array(path: Path, begin: int, about: Mapping[str, Any]) -> np.ndarray:
    """The array that begins at a byte of a file; changes of it stay in memory.

    Raises:
      ValueError: the file is too short, or a part differs from its CRC-32.
      OSError: the file cannot be read.
    """
    array = np.asarray(np.memmap(path, about["dtype"], "c", begin, (about["size"],)))

    def check(part: slice, checksum: int) -> None:
        with open(path, "rb") as file:
            file.seek(begin + part.start)
            if zlib.crc32(file.read(part.stop - part.start)) != checksum:
                raise ValueError(f"it is damaged after byte {begin + part.start:,}")

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(check, _parts(array.nbytes), about["crc32"]):
            pass
    return array


def _parts(size: int) -> list[slice]:
    """The slices of that many bytes which have a CRC-32 each."""
    return [slice(begin, min(begin + _PART, size)) for begin in range(0, size, _PART)]
