"""The files of a packed text, written and read through TensorStore."""

from __future__ import annotations

from typing import Any

import tensorstore as ts

from charjax.errors import InputError, first_line
from charjax.runtime.paths import is_address, kvstore_folder

CHUNK = 1 << 14  # tokens compressed together: the least that is read
FILE_TOKENS = 1 << 24  # tokens in a file
LAYOUT = "zarr.json"  # TensorStore's description of an array, which reading does not need
# How TensorStore's messages begin where the machine or the network is to blame.
HOST_ERRORS = (
    "ABORTED",  # all attempts to reach a server failed
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
)
# Of `few_retries`: about 20 s. TensorStore's own take minutes.
_RETRIES = {"max_retries": 4}


def _configured(name: str, **configuration: Any) -> dict[str, Any]:
    """A part of an array's metadata."""
    return {"name": name, "configuration": configuration}


_BYTES, _CRC = _configured("bytes", endian="little"), {"name": "crc32c"}


def few_retries() -> ts.Context:
    """The settings for a first look at an address, which nobody may serve."""
    retries = [f"{server}_request_retries" for server in ("http", "gcs", "s3")]
    return ts.Context(dict.fromkeys(retries, _RETRIES))


def open_files(path: str, context: ts.Context | None = None) -> ts.KvStore:
    """The files of a local folder or of an address, by their names.

    Args:
      path: the folder or the address.
      context: the settings of TensorStore; None for its own.

    Raises:
      InputError: TensorStore cannot read such an address.
    """
    if not is_address(path):
        return ts.KvStore.open({"driver": "file", "path": kvstore_folder(path)}).result()
    try:
        return ts.KvStore.open(f"{path.rstrip('/')}/", context=context).result()
    except ValueError as error:
        raise InputError(
            f"{path}: cannot be read ({first_line(error)}); give a folder, or an address such as "
            "gs://bucket/folder, s3://bucket/folder or http://host/folder"
        ) from error


def write_file(files: ts.KvStore, name: str, content: bytes) -> None:
    """Writes a file atomically."""
    files.write(name, content).result()


def array_spec(files: ts.KvStore, name: str, dtype: str, size: int) -> dict[str, Any]:
    """The TensorStore spec of a one-dimensional array: zstd, with a crc32c for every chunk."""
    sharding = _configured(
        "sharding_indexed",
        chunk_shape=[CHUNK],
        codecs=[_BYTES, _configured("zstd", level=1, checksum=False), _CRC],
        index_codecs=[_BYTES, _CRC],
        index_location="end",
    )
    metadata = {
        "shape": [size],
        "data_type": dtype,
        "fill_value": 0,
        "chunk_grid": _configured("regular", chunk_shape=[FILE_TOKENS]),
        "codecs": [sharding],
    }
    return {
        "driver": "zarr3",
        "kvstore": (files / f"{name}/").spec().to_json(),
        "metadata": metadata,
        # Otherwise a lost file would read as zeros, and a part of zeros would have no file.
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
        "recheck_cached_data": False,
        "recheck_cached_metadata": False,
    }
