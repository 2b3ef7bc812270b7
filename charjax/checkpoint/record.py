"""What a checkpoint says about itself, and the digests by which it is believed.

A record names every leaf with its shape, dtype and SHA-256, carries the
caller's own JSON, and ends in a digest of itself, so that a flipped bit in
arrays or record alike is found. The digests find accidents, not forgers.
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
    """A checkpoint that cannot be trusted; says why in a few words."""


class Leaf(NamedTuple):
    """One array: its shape, the name of its dtype, the SHA-256 of its bytes."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.dtype}{[*self.shape]}"


@dataclass(frozen=True)
class Record:
    """A checkpoint without its arrays.

    Attributes:
      step: steps done.
      val_loss: nats per character; None where it was not evaluated.
      meta: the caller's JSON values.
      leaves: path -> `Leaf` of every array.
    """

    step: int
    val_loss: float | None
    meta: dict[str, Any]
    leaves: dict[str, Leaf]

    def leaf(self, path: str, *, like: Any) -> Leaf:
        """The leaf at this path.

        Raises:
          CheckpointError: there is none, or not with the shape and dtype of `like`.
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
    """({path: leaf} in order, the structure for `jax.tree.unflatten`).

    A path such as `params/dense/kernel` names dict keys, fields and indices;
    every other sign in them is percent-encoded, so that paths stay distinct.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(map(_name, keys)): leaf for keys, leaf in leaves}, structure


def describe(array: np.ndarray) -> Leaf:
    """The leaf that the record holds for this array."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return Leaf(array.shape, array.dtype.name, hashlib.sha256(data.data).hexdigest())


def seal(record: Record) -> dict[str, Any]:
    """The record as JSON values with their digest. A val_loss that is not finite becomes None."""
    evaluated = record.val_loss is not None and math.isfinite(record.val_loss)
    values = {
        "format": _FORMAT,
        "step": record.step,
        "val_loss": record.val_loss if evaluated else None,
        "meta": record.meta,
        "leaves": {path: leaf._asdict() for path, leaf in record.leaves.items()},
    }
    as_read: dict[str, Any] = json.loads(json.dumps(values))  # keys are str, tuples are lists
    return as_read | {"sha256": _digest(as_read)}


def unseal(values: Mapping[str, Any]) -> Record:
    """The record of these JSON values.

    Raises:
      DamagedError: they are not what `seal` returned, or an unknown format.
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


def _name(key: Any) -> str:
    return urllib.parse.quote(jax.tree_util.keystr((key,), simple=True), safe="")


def _digest(values: Mapping[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
