"""A checkpoint's metadata: shape, dtype and SHA-256 of every array, and the caller's JSON.

The record's JSON has a digest of itself, so that a flipped bit is found in the arrays and in the
record. The digests find accidents, not forgery.
"""

from __future__ import annotations

import hashlib
import json
import math
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.errors import CheckpointError
from charjax.types import PyTree

_FORMAT = 1


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

    def __str__(self) -> str:
        return f"{self.dtype}{[*self.shape]}"


@dataclass(frozen=True)
class Record:
    """A checkpoint without its arrays.

    Attributes:
      step: steps done.
      val_loss: nats per character; None where it was not evaluated.
      meta: the caller's JSON values.
      leaves: {path: `Leaf`} of every array; paths as `flatten` makes them.
    """

    step: int
    val_loss: float | None
    meta: dict[str, Any]
    leaves: dict[str, Leaf]

    def leaf(self, path: str, *, like: Any) -> Leaf:
        """The leaf at a path, which must have the shape and dtype of `like`.

        Raises:
          CheckpointError: it has not, or there is none.
        """
        shape, dtype = tuple(like.shape), jnp.dtype(like.dtype).name
        if path in self.leaves and self.leaves[path][:2] == (shape, dtype):
            return self.leaves[path]
        saved = str(self.leaves[path]) if path in self.leaves else "not there"
        raise CheckpointError(
            f"checkpoint of step {self.step}: {path} is {saved}, but {Leaf(shape, dtype, '')} "
            "is wanted; use the config that this run was trained with"
        )


def flatten(tree: PyTree) -> tuple[dict[str, Any], Any]:
    """Flattens a pytree to paths such as `params/dense/kernel`.

    Dict keys, fields and indices are percent-encoded in it, so that paths are distinct.

    Returns:
      {path: leaf} in the order of `jax.tree.leaves`, the structure for `jax.tree.unflatten`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(map(_encode, keys)): leaf for keys, leaf in leaves}, structure


def to_json(record: Record) -> dict[str, Any]:
    """The record as JSON values with their digest. A val_loss that is not finite becomes None."""
    is_finite = record.val_loss is not None and math.isfinite(record.val_loss)
    values = {
        "format": _FORMAT,
        "step": record.step,
        "val_loss": record.val_loss if is_finite else None,
        "meta": record.meta,
        "leaves": {path: leaf._asdict() for path, leaf in record.leaves.items()},
    }
    parsed: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists, keys strings
    return parsed | {"sha256": _digest(parsed)}


def from_json(values: Mapping[str, Any]) -> Record:
    """The record that `to_json` was given.

    Raises:
      DamagedError: the values differ from their digest, or have an unknown format.
    """
    values = dict(values)
    if values.pop("sha256") != _digest(values):
        raise DamagedError("differs from its digest")
    if values["format"] != _FORMAT:
        raise DamagedError(f"has format {values['format']}, this charjax reads {_FORMAT}")
    leaves = {
        path: Leaf(tuple(leaf["shape"]), leaf["dtype"], leaf["sha256"])
        for path, leaf in values["leaves"].items()
    }
    return Record(values["step"], values["val_loss"], values["meta"], leaves)


def _encode(key: Any) -> str:
    return urllib.parse.quote(jax.tree_util.keystr((key,), simple=True), safe="")


def _digest(values: Mapping[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
