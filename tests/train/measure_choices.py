"""Measures the table by which a text without a config gets its sizes: `charjax/train/choices.json`.

    python -m tests.train.measure_choices TEXT [--chars 10000 100000] [--minutes 1] [--out=FILE]

For each length of the beginning of TEXT and each number of minutes, trains the grid of cells, units
and dropout for that time, as `charjax train TEXT` would, and writes the row of the lowest
validation loss with `"measured": true`. The whole table is 108 runs and 10 hours of two quiet
cores; rows that are not measured stay as they are. `--out` gets every run of the grid.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

CELLS, UNITS, DROPOUTS = ("gru", "lstm"), (128, 256, 512), (0.0, 0.3, 0.5)
CHARS, MINUTES = (10_000, 100_000, 1_000_000), (1, 10)


def run(text: Path, minutes: int, cell: str, hidden: int, dropout: float) -> dict:
    """Trains one cell of the grid; returns its sizes and its best validation loss."""
    model = {"cell": cell, "hidden": hidden, "embed": hidden // 4, "dropout": dropout}
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder, "run")
        command = [sys.executable, "-m", "charjax", "train", str(text), f"--minutes={minutes}"]
        flags = [f"--config.model.{name}={value}" for name, value in model.items()]
        subprocess.run(
            [*command, *flags, f"--workdir={workdir}"], check=True, stdout=subprocess.DEVNULL
        )
        records = [*map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())]
        losses = [record["val_loss"] for record in records if "val_loss" in record]
        data = json.loads((workdir / "choice.json").read_text())["config"]
    sizes = {name: data["data"][name] for name in ("batch_size", "seq_len")}
    steps = [record["step"] for record in records if record.get("val_loss") == min(losses)]
    epochs = math.ceil(1.5 * max(record["epoch"] for record in records if record["step"] in steps))
    rate = data["optim"]["learning_rate"]
    return {**model, **sizes, "learning_rate": rate, "epochs": epochs, "val": min(losses)}


def measure(text: Path, chars: int, minutes: int) -> list[dict]:
    """Every run of the grid for the first characters of a text, the best one first."""
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, "text.txt")
        part.write_text(text.read_text("utf-8")[:chars], encoding="utf-8")
        grid = itertools.product(CELLS, UNITS, DROPOUTS)
        runs = [run(part, minutes, *cell) for cell in grid]
    return sorted(runs, key=lambda result: result["val"])


def write_row(result: dict, chars: int, minutes: int) -> None:
    """Replaces or adds the row of the table for a CPU, this length and these minutes."""
    file = Path(str(resources.files("charjax.train") / "choices.json"))
    table = json.loads(file.read_text("utf-8"))
    sizes = {name: value for name, value in result.items() if name != "val"}
    row = {"device": "cpu", "chars": chars, "minutes": minutes, **sizes, "measured": True}
    key = [row[name] for name in ("device", "chars", "minutes")]
    others = [r for r in table["rows"] if [r["device"], r["chars"], r["minutes"]] != key]
    rows = sorted([*others, row], key=lambda r: (r["device"], r["chars"], r["minutes"]))
    lines = ",\n".join(f"    {json.dumps(r)}" for r in rows)
    about = json.dumps(table["about"])
    file.write_text(f'{{\n  "about": {about},\n  "rows": [\n{lines}\n  ]\n}}\n', encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--chars", type=int, nargs="+", default=CHARS)
    parser.add_argument("--minutes", type=int, nargs="+", default=MINUTES)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    grids = []
    for chars, minutes in itertools.product(args.chars, args.minutes):
        runs = measure(args.text, chars, minutes)
        grids.append({"chars": chars, "minutes": minutes, "runs": runs})
        write_row(runs[0], chars, minutes)
        if args.out:
            args.out.write_text(json.dumps(grids, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
