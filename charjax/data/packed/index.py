"""The index of a packed text and the records of its shards, as JSON files.

A file is the same bytes whenever the same content is written, so that a digest identifies it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from charjax import schema
from charjax.data.tokens.encoded_text import BOUNDARY
from charjax.errors import InputError

FORMAT = 1  # the version of the layout on disk
INDEX, PLAN = "store.json", "plan.json"


class Shard(NamedTuple):
    """A shard, as `store.json` lists it.

    Attributes:
      tokens: how many it has, boundary tokens included.
      documents: how many start in it.
      chars: how many characters it has.
      record: SHA-256 of its record.
    """

    tokens: int
    documents: int
    chars: int
    record: str


class ShardText(NamedTuple):
    """The text of a shard.

    Attributes:
      alphabet: the character of each token, after the boundary if there is one.
      boundary: whether token 0 is the document boundary.
      dtype: of the tokens.
      tokens: how many tokens it has.
      documents: how many documents start in it.
      chars: how many characters it has.
      has_delimiter: whether a delimiter of documents was found.
      notices: warnings to the user about it.
    """

    alphabet: str
    boundary: bool
    dtype: str
    tokens: int
    documents: int
    chars: int
    has_delimiter: bool
    notices: tuple[str, ...]

    @property
    def token_characters(self) -> tuple[str, ...]:
        """The character of each token; `BOUNDARY` for the document boundary."""
        return ((BOUNDARY,) if self.boundary else ()) + tuple(self.alphabet)


class ShardDigests(NamedTuple):
    """What a shard was packed from, and its content, as SHA-256.

    Attributes:
      sha256: of the tokens, little-endian.
      starts_sha256: of the positions of its documents in it, int64, little-endian.
      layout_sha256: of TensorStore's descriptions of the arrays.
      input_sha256: of the bytes that were read, decompressed.
      input_bytes: how many they are.
      hashes_sha256: of the hashes of the documents that start in it, uint32, little-endian; ""
        where there are none, as in stores of older versions.
      with_bom: files (no digest) whose byte order mark was dropped; older stores have a notice.
    """

    sha256: str
    starts_sha256: str
    layout_sha256: str
    input_sha256: str
    input_bytes: int
    hashes_sha256: str = ""
    with_bom: tuple[str, ...] = ()


class ShardRecord(NamedTuple):
    """What a shard holds."""

    text: ShardText
    digests: ShardDigests

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardRecord:
        """The record that `to_bytes` wrote.

        Raises:
          InputError: it is damaged.
        """
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(f"record: not JSON: {error}") from error
        return cls(*schema.parse_pair(ShardText, ShardDigests, values, "record"))

    def to_bytes(self) -> bytes:
        """The content of its file; nothing empty of what older versions did not have."""
        values = self.text._asdict() | self.digests._asdict()
        added = ("hashes_sha256", "with_bom")
        return json_bytes({k: v for k, v in values.items() if k not in added or v})


class Index(NamedTuple):
    """The content of `store.json`.

    Attributes:
      reading: `ReadingRules` as JSON.
      characters: all characters of the text, as they first appear.
      chars: how many characters the text has.
      notices: warnings to the user about the text.
      field: the field of JSON lines or Parquet that has the text, or "".
      inputs: the files that were read, as in `charjax.data.packed.plan.Plan`.
      shards: the parts of the text, in its order.
      sha256: what identifies the text: of the reading rules and the records.
    """

    reading: Mapping[str, Any]
    characters: str
    chars: int
    notices: tuple[str, ...]
    field: str
    inputs: tuple[Mapping[str, Any], ...]
    shards: tuple[Shard, ...]
    sha256: str

    @property
    def num_documents(self) -> int:
        """How many documents the text has; one where no shard says that one starts."""
        return max(1, sum(shard.documents for shard in self.shards))

    @classmethod
    def from_bytes(cls, data: bytes) -> Index:
        """The index that `to_bytes` wrote.

        Raises:
          InputError: it is damaged, or another version wrote it.
        """
        try:
            values = json.loads(data)
            checksum = values.pop("checksum")
            if checksum != _checksum(values):
                raise InputError("differs from its checksum")
            version = values.pop("format")
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"no JSON of an index: {error}") from error
        if version != FORMAT:
            raise InputError(f"format={version}: this version reads {FORMAT}")
        return schema.parse(cls, values, INDEX)

    def to_bytes(self) -> bytes:
        """The content of `store.json`."""
        shards = [shard._asdict() for shard in self.shards]
        values = json.loads(json_bytes(self._asdict() | {"format": FORMAT, "shards": shards}))
        return json_bytes(values | {"checksum": _checksum(values)})


def is_plan(data: bytes) -> bool:
    """Whether the bytes of a `plan.json` are those of a plan of charjax, not of the user."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and {"format", "shards"} <= values.keys()


def record_name(number: int) -> str:
    """The name of the record of a shard."""
    return f"shards/{number:05}.json"


def array_name(kind: str, number: int) -> str:
    """The name of an array of a shard; its kind is "tokens", "starts" or "hashes"."""
    return f"{kind}/{number:05}"


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """JSON values as they are stored."""
    return json.dumps(values, sort_keys=True).encode("ascii")


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_bytes(values)).hexdigest()
