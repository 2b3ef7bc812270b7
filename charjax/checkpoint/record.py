"""A checkpoint's metadata: shape, dtype and SHA-256 of every array, and the caller's JSON.

The record also has a digest of its JSON, so that a flipped bit is found in the arrays and in the
record itself. The digests guard against accidents, not against forgery.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes  # which adds bfloat16 and the like to numpy's dtypes
import numpy as np

from charjax import schema
from charjax.errors import CheckpointError, InputError

_FORMAT = 1  # version of the record's JSON


class DamagedError(Exception):
    """A checkpoint that differs from its digests or cannot be read."""


class Leaf(NamedTuple):
    """One array: its shape, the name of its dtype, the SHA-256 of its bytes."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str

    @classmethod
    def of(cls, array: np.ndarray) -> Leaf:
        """The shape, dtype and digest of an array."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return cls(array.shape, array.dtype.name, hashlib.sha256(data.data).hexdigest())

    @classmethod
    def like(cls, array: Any) -> Leaf:
        """The shape and dtype of an array, a number or `ShapeDtypeStruct`, without a digest."""
        array = array if hasattr(array, "dtype") else np.asarray(array)
        return cls(tuple(array.shape), np.dtype(array.dtype).name, "")

    def is_valid(self) -> bool:
        """Whether the shape is possible, and the dtype one of numbers or bools."""
        try:
            dtype = np.dtype(self.dtype)
        except TypeError:  # there is no such dtype
            return False
        is_numeric = np.issubdtype(dtype, np.number) or dtype == np.bool_
        is_numeric = is_numeric or dtype.type.__module__ == ml_dtypes.__name__
        return is_numeric and dtype.name == self.dtype and min(self.shape, default=0) >= 0

    def __str__(self) -> str:
        return f"{self.dtype}{[*self.shape]}"


@dataclass(frozen=True)
class Record:
    """A checkpoint without its arrays.

    Attributes:
      step: number of training steps done.
      val_loss: in nats per character; None if this step was not evaluated.
      meta: the caller's JSON values.
      leaves: {path: `Leaf`} of every array, with the paths of `checkpoints.flatten`.
    """

    step: int
    val_loss: float | None
    meta: dict[str, Any]
    leaves: dict[str, Leaf]

    @property
    def val_text_id(self) -> tuple[Any, Any]:
        """Equal for steps whose `val_loss` was measured on the same text, within one run."""
        parts = (self.meta.get(part) for part in ("corpus", "progress"))
        corpus, progress = (part if isinstance(part, dict) else {} for part in parts)
        return corpus.get("sha256"), progress.get("val_record", 0)

    def holds(self, like: Mapping[str, Any]) -> bool:
        """Whether every array of `like` was saved under its path with its shape and dtype."""
        found = {path: self.leaves.get(path) for path in like}
        return all(leaf and leaf[:2] == Leaf.like(like[path])[:2] for path, leaf in found.items())

    def leaf(self, path: str, wanted: Leaf) -> Leaf:
        """The leaf at a path, after checking its shape and dtype.

        Raises:
          CheckpointError: no such array was saved, or it has another shape or dtype than `wanted`.
        """
        saved = self.leaves.get(path)
        if saved and saved[:2] == wanted[:2]:
            return saved
        raise CheckpointError(
            f"checkpoint of step {self.step}: {path} is {saved or 'not there'}, but the config "
            f"needs {wanted}; use the config that this run was trained with"
        )


def to_json(record: Record) -> dict[str, Any]:
    """The record as JSON values, with a digest of them. A val_loss that is not finite is None."""
    val_loss = record.val_loss
    if val_loss is not None:  # float: it may be of numpy or JAX
        val_loss = float(val_loss) if math.isfinite(val_loss) else None
    values = {
        "format": _FORMAT,
        "step": record.step,
        "val_loss": val_loss,
        "meta": record.meta,
        "leaves": {path: leaf._asdict() for path, leaf in record.leaves.items()},
    }
    parsed: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists, keys strings
    return parsed | {"sha256": _digest(parsed)}


def from_json(values: Any) -> Record:
    """The record that `to_json` wrote.

    Raises:
      DamagedError: the values differ from their digest, are of another version of the format, or
        are not a record.
    """
    if not isinstance(values, dict) or not {"sha256", "format"} <= values.keys():
        raise DamagedError("not a record")
    fields = {name: value for name, value in values.items() if name != "sha256"}
    if values["sha256"] != _digest(fields):
        raise DamagedError("it differs from its digest")
    if fields.pop("format") != _FORMAT:
        raise DamagedError(f"not in format {_FORMAT}, the only one that this charjax reads")
    try:
        record = schema.parse(Record, fields, "record")
    except InputError as error:
        raise DamagedError(str(error)) from None
    if record.step < 0:
        raise DamagedError(f"its step is {record.step}, below 0")
    for path, leaf in record.leaves.items():
        if not leaf.is_valid():
            raise DamagedError(f"{path[:60]}: the shape or the dtype is not valid")
    return record


def _digest(values: Mapping[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
