"""A text as a file of the cache, which is mapped to memory.

Its first line is a CRC-32 and JSON, which describes the text and has a CRC-32 of each part of the
arrays; then come the bytes of the arrays. A reader compares every CRC-32, and maps the arrays to
memory without a copy.
"""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from charjax.data.tokens.encoded_text import EncodedText

# A text, and what else is known of it, as JSON values.
CachedText: TypeAlias = tuple[EncodedText, dict[str, Any]]

_PART = 1 << 22  # bytes that have one CRC-32
_THREADS = 4  # that compare parts
_ALIGNMENT = 8  # bytes, of the arrays in the file


def read_cached(path: Path) -> CachedText:
    """The text of a file that `write_cached` wrote.

    Raises:
      OSError, ValueError, LookupError: it is damaged, or cannot be read.
    """
    with open(path, "rb") as file:
        checksum, _, data = file.readline().partition(b" ")
        begin = file.tell()
    if int(checksum, 16) != zlib.crc32(data):
        raise ValueError("its first line is damaged")
    entry = json.loads(data)
    sizes, checksums = entry["sizes"], entry["checksums"]
    # A change of the values would stay in memory.
    values = np.asarray(np.memmap(path, np.uint8, "c", begin, (sum(sizes),)))
    parts = np.split(values, np.cumsum(sizes[:-1]))
    with ThreadPoolExecutor(_THREADS) as pool:
        if list(pool.map(zlib.crc32, parts)) != checksums:
            raise ValueError("its tokens are damaged")
    end = 8 * entry["documents"]
    starts, tokens = values[:end].view(np.int64), values[end:].view(entry["dtype"])
    return EncodedText(tokens, tuple(entry["alphabet"]), starts), entry["about"]


def write_cached(file: IO[bytes], text: CachedText) -> None:
    """Writes a text into a file."""
    content, about = text
    arrays = (content.starts.view(np.uint8), content.tokens.view(np.uint8))
    parts = [array[i : i + _PART] for array in arrays for i in range(0, array.size, _PART)]
    entry = {
        "about": about,
        "alphabet": content.alphabet,
        "documents": len(content.starts),
        "dtype": content.tokens.dtype.name,
        "sizes": [part.size for part in parts],
        "checksums": [zlib.crc32(part.data) for part in parts],
    }
    data = json.dumps(entry).encode()
    data += b" " * (-(len(data) + 10) % _ALIGNMENT) + b"\n"
    file.write(b"%08x %s" % (zlib.crc32(data), data))
    for part in parts:
        file.write(part.data)
