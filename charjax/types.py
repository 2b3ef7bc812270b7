"""Array types that more than one package uses, as jaxtyping aliases.

Axis names: `batch` sequences, `time` positions in a sequence, `vocab` tokens of the
vocabulary, `hidden` units of a layer, `gates` the cell's number of gates times `hidden`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Int, Key

PyTree: TypeAlias = Any

Tokens: TypeAlias = Int[Array, "batch time"]
Reset: TypeAlias = Bool[Array, " batch"]  # sequences whose carry is set to zero
Resets: TypeAlias = Bool[Array, "batch time"]  # positions before which the carry is set to zero
Logits: TypeAlias = Float[Array, "batch time vocab"]
Scalar: TypeAlias = Float[Array, ""]
Count: TypeAlias = Int[Array, ""]
PRNGKey: TypeAlias = Key[Array, ""]

# One layer's state, float32: (h,) for GRU and RNN, (h, c) for LSTM.
LayerCarry: TypeAlias = tuple[Float[Array, "batch hidden"], ...]
# The network's state: one `LayerCarry` per layer.
Carry: TypeAlias = tuple[LayerCarry, ...]
