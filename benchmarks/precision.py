"""The loss of configs/shakespeare.py with float32 and with bfloat16 products.

    python -m benchmarks.precision

Three whole runs: float32 twice, from two seeds, whose difference is what chance alone does;
and bfloat16 from the first seed. Writes `results/precision.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.headline import NO_OTHER_TEXT, run

RUNS = (("float32", 0), ("bfloat16", 0), ("float32", 1))


def curve(dtype: str, seed: int, workdir: Path) -> list[dict[str, Any]]:
    """The records that have a validation loss, of one run."""
    flags = (f"--config.model.dtype={dtype}", f"--config.seed={seed}", f"--workdir={workdir}")
    run("launch.py", "--config=configs/shakespeare.py", *flags, NO_OTHER_TEXT)
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "val_loss" in record]


def rows(curves: dict[tuple[str, int], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row an evaluation, a column a run."""
    names = [f"{dtype}, seed {seed}" for dtype, seed in curves]
    return [
        {"step": at[0]["step"]}
        | {name: f"{r['val_loss']:.4f}" for name, r in zip(names, at, strict=True)}
        for at in zip(*curves.values(), strict=True)
    ]


def main() -> None:
    """Trains all and writes the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        curves = {
            (dtype, seed): curve(dtype, seed, Path(scratch) / f"{dtype}-{seed}")
            for dtype, seed in RUNS
        }
    print(machine.write("precision", {"rows": rows(curves)}))


if __name__ == "__main__":
    main()
