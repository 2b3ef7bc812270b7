"""The safetensors format: named arrays in one file, which is read without running anything in it.

The format is 8 bytes with the size of a JSON header, the header, and the arrays' bytes
(https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import logging
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from charjax import schema
from charjax.errors import InputError
from charjax.runtime.files import read_linked

Arrays = dict[str, np.ndarray]

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 16 * 2**20

_logger = logging.getLogger(__name__)


class _Entry(NamedTuple):
    """One array in the header."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]

    @property
    def size(self) -> int:
        """In bytes, as the shape and the dtype say."""
        return math.prod(self.shape) * _DTYPES.get(self.dtype, np.dtype("u1")).itemsize


def safetensors_file(arrays: Arrays, metadata: Mapping[str, str]) -> bytes:
    """The content of a file: the same for the same names and values, in whatever order they come.

    The package `safetensors` would order the metadata at random.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    parts, end = [], 0
    # The largest items first, so that every array is aligned to its items.
    for name, array in sorted(arrays.items(), key=lambda named: (-named[1].itemsize, named[0])):
        start, end = end, end + array.nbytes
        header[name] = _Entry(_NAMES[array.dtype], list(array.shape), [start, end])._asdict()
        parts.append(array.tobytes())  # row-major, also of a transposed view
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def read_safetensors(path: Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays of a file by name, and its metadata.

    Arrays of bfloat16 become float32, which holds their values exactly.

    Raises:
      InputError: it is not such a file, or damaged.
      OSError: it cannot be read.
    """
    data = read_linked(path)
    try:
        return parse_safetensors(data)
    except InputError as error:
        raise InputError(f"{path}: not a sound safetensors file: {error}") from None


def parse_safetensors(data: bytes) -> tuple[Arrays, dict[str, str]]:
    """The arrays and the metadata in the content of a file.

    Raises:
      InputError: the content is damaged.
    """
    if len(data) < 8:
        raise InputError("it is shorter than 8 bytes")
    (size,) = struct.unpack_from("<Q", data)
    if size > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise InputError(f"its header has {size} bytes, which are more than there may be")
    try:
        header = json.loads(data[8 : 8 + size].decode("utf-8"))
    except (ValueError, RecursionError):
        raise InputError("its header is not JSON") from None
    if not isinstance(header, dict):
        raise InputError("its header is not a JSON object")
    metadata = schema.parse(Mapping[str, str], header.pop("__metadata__", {}), "metadata")
    body = memoryview(data)[8 + size :]
    entries = {name: schema.parse(_Entry, v, f"array {name[:60]!r}") for name, v in header.items()}
    if sum(entry.size for entry in entries.values()) > len(body):
        raise InputError("its arrays have more bytes than it has")
    return {name: _array(name, entry, body) for name, entry in entries.items()}, metadata


def _array(name: str, entry: _Entry, body: memoryview) -> np.ndarray:
    shown = f"array {name[:60]!r}"
    if entry.dtype not in _DTYPES:
        raise InputError(f"{shown}: its dtype {entry.dtype[:20]!r} is not read here")
    if len(entry.data_offsets) != 2 or min(entry.shape, default=0) < 0:
        raise InputError(f"{shown}: has no valid shape and place")
    start, end = entry.data_offsets
    if not 0 <= start <= end <= len(body) or end - start != entry.size:
        raise InputError(f"{shown}: its shape does not fit its place in the file")
    array = np.frombuffer(body[start:end], _DTYPES[entry.dtype]).reshape(entry.shape)
    return array.astype(np.float32) if entry.dtype == "BF16" else array


def float32_weights(arrays: Arrays) -> Arrays:
    """Weights in float32.

    Raises:
      InputError: a dtype is not floating point, or a value is not finite in float32.
    """
    converted: Arrays = {}
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise InputError(f"{name[:80]} is {array.dtype}, not floating point")
        if array.dtype.itemsize > 4:
            _logger.info("%s: %s, rounded to float32", name[:80], array.dtype)
        with np.errstate(over="ignore"):
            converted[name] = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(converted[name]).all():
            raise InputError(f"{name[:80]} is not finite in float32")
    return converted


def check_shapes(arrays: Arrays, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises InputError for arrays that have other names or shapes than those of a model."""
    if arrays.keys() != wanted.keys():
        raise InputError(f"the model must have the arrays {', '.join(wanted)}")
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise InputError(f"{name} is {[*arrays[name].shape]}, not {[*shape]}")
