"""What it gives to compute the gates in blocks of units: python -m benchmarks.blocks.

A training step with every layer in one block against the same in several, whatever the
recurrence would choose. Writes `results/blocks.json`.
"""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any

from benchmarks import machine
from benchmarks.common import Peer, measure, progress, ratio
from benchmarks.peers.with_charjax import train_step
from benchmarks.shape import Shape
from benchmarks.worker import Task
from charjax.model.recurrence import xla

ROUNDS = 5
_DISPATCH = 2  # steps
_COUNTS = (1, 4, 8, 16)
_LAYERS = (
    ("gru", 128, 32),
    ("gru", 256, 32),
    ("gru", 512, 32),
    ("gru", 512, 64),
    ("lstm", 512, 64),
    ("gru", 1024, 64),
)


def in_blocks(shape: dict[str, Any], dtype: str, count: int) -> Task:
    """Charjax' step with a layer's units in so many blocks."""
    xla._BLOCKS, xla._IN_BLOCKS = count, range(1, 1 << 16)
    return train_step(shape, dtype, "fast", _DISPATCH)


def row(cell: str, hidden: int, lanes: int, dtype: str) -> dict[str, Any]:
    """One layer: times as fast as whole, for every number of blocks."""
    shape = dataclasses.asdict(Shape(cell=cell, hidden=hidden, batch=lanes))
    peers = [
        Peer(
            str(count),
            "benchmarks.blocks:in_blocks",
            {"shape": shape, "dtype": dtype, "count": count},
        )
        for count in _COUNTS
    ]
    measured = measure(peers, rounds=ROUNDS, turn_s=0.5, device="cpu").to_json()["peers"]
    found: dict[str, Any] = {"cell": cell, "hidden": hidden, "lanes": lanes, "dtype": dtype}
    for count in _COUNTS[1:]:
        found[f"{count} blocks"] = round(ratio(measured[str(count)], measured["1"]), 2)
    progress(f"{found}")
    return found


def main() -> None:
    """Writes the table."""
    rows = [row(*layer, dtype) for layer, dtype in product(_LAYERS, ("float32", "bfloat16"))]
    print(machine.write("blocks", {"rows": rows}))


if __name__ == "__main__":
    main()
