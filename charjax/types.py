"""Names for the array types that cross room boundaries.

Axis names: `batch` lanes or windows, `time` characters, `vocab` symbols,
`hidden` units of one layer, `gates` = gates of the cell times `hidden`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Int, Key

PyTree: TypeAlias = Any

Tokens: TypeAlias = Int[Array, "batch time"]
Mask: TypeAlias = Bool[Array, "batch time"]
Reset: TypeAlias = Bool[Array, " batch"]
Logits: TypeAlias = Float[Array, "batch time vocab"]
Nats: TypeAlias = Float[Array, "batch time"]
Scalar: TypeAlias = Float[Array, ""]
Count: TypeAlias = Int[Array, ""]
PRNGKey: TypeAlias = Key[Array, ""]

# One layer's recurrent state: (hidden,) for GRU and RNN, (hidden, cell) for
# LSTM, each float32 [batch, hidden]; the network's carry has one a layer.
LayerCarry: TypeAlias = tuple[Float[Array, "batch hidden"], ...]
Carry: TypeAlias = tuple[LayerCarry, ...]
