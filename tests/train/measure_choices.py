"""Measures `charjax/train/choices.json`, from which a text without a config gets its values.

    python -m tests.train.measure_choices FOLDER TEXT... [--minutes=2]

Trains the grid of cells, units and dropout on each text for that time, as `charjax train TEXT`
would, with the other values of the table's row for the text. A run ends early after three
evaluations without a lower validation loss. Writes the best cell into that row (of several texts,
the one nearest to each one's best), with `"measured": true`, and all losses to
benchmarks/results/choices.json, from which `python -m benchmarks.pages` fills docs/quality.md.
Needs quiet cores: each run times its own warm-up. FOLDER keeps the runs: one that was interrupted
goes on, and one that has ended is not trained again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from charjax.train.sizing import find_row
from tests.environment import existing, provenance

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "choices.json"
CELLS, UNITS, DROPOUTS = ("lstm", "gru"), (512, 256, 128), (0.0, 0.3, 0.5)


def train(workdir: Path, text: Path, minutes: int, model: dict[str, Any]) -> dict[str, Any]:
    """One cell of the grid: its model, steps and best validation loss."""
    done = workdir / "grid.json"
    if not done.exists():
        command = [sys.executable, "-m", "charjax", "train", str(text), f"--minutes={minutes}"]
        flags = [f"--config.model.{name}={value}" for name, value in model.items()]
        flags += ["--config.train.patience=3", "--config.sample.num_chars=0"]
        flags.append(f"--workdir={workdir}")
        subprocess.run([*command, *flags], check=True, stdout=subprocess.DEVNULL)
        records = [*map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())]
        evaluations = [record for record in records if "val_loss" in record]
        best = min(evaluations, key=lambda record: record["val_loss"])
        steps = json.loads((workdir / "choice.json").read_text())["config"]["train"]["max_steps"]
        result = {"steps": steps, "best_step": best["step"], "loss": round(best["val_loss"], 4)}
        done.write_text(json.dumps(model | result))
    found: dict[str, Any] = json.loads(done.read_text())
    return found


def measure(folder: Path, text: Path, minutes: int) -> list[dict[str, Any]]:
    """Every cell of the grid for a text."""
    about = {"text": text.name, "chars": len(text.read_text("utf-8"))}
    runs = []
    for cell, hidden, dropout in itertools.product(CELLS, UNITS, DROPOUTS):
        model = {"cell": cell, "hidden": hidden, "embed": hidden // 4, "dropout": dropout}
        workdir = folder / f"{text.stem}-{cell}-{hidden}-{dropout:g}"
        runs.append(about | train(workdir, text, minutes, model))
        print(runs[-1], flush=True)
    return runs


def best_cell(grids: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The cell whose loss is the nearest to the best one of each text, relative to it."""
    lowest = [min(float(run["loss"]) for run in grid) for grid in grids]

    def excess(cell: tuple[dict[str, Any], ...]) -> float:
        return max(run["loss"] / best for run, best in zip(cell, lowest, strict=True))

    return min(zip(*grids, strict=True), key=excess)[0]


def write_rows(grids: list[list[dict[str, Any]]], minutes: int) -> None:
    """Writes the best cell into each row of the table that one or more of the texts use."""
    file = Path(str(resources.files("charjax.train") / "choices.json"))
    table = json.loads(file.read_text("utf-8"))
    for row in table["rows"]:
        key = row["device"], row["chars"], row["minutes"]
        if users := [g for g in grids if find_row(g[0]["chars"], minutes, "cpu")[:3] == key]:
            best = best_cell(users)
            row["model"] |= {name: best[name] for name in ("cell", "hidden", "embed", "dropout")}
            row["measured"] = True
    lines = ",\n".join(f"    {json.dumps(row)}" for row in table["rows"])
    about = json.dumps(table["about"])
    file.write_text(f'{{\n  "about": {about},\n  "rows": [\n{lines}\n  ]\n}}\n', encoding="utf-8")


def result_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each text, cell and width: the losses by dropout."""
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for run in runs:
        key = run["text"], run["cell"], run["hidden"]
        row = rows.setdefault(key, dict(zip(("text", "cell", "hidden"), key, strict=True)))
        row |= {"steps": run["steps"], f"dropout {run['dropout']:g}": run["loss"]}
    return [*rows.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("texts", type=existing, nargs="+", metavar="TEXT")
    parser.add_argument("--minutes", type=int, default=2)
    args = parser.parse_args()
    if len({text.stem for text in args.texts}) < len(args.texts):  # the runs' folders have them
        parser.error("two texts have one name")
    grids = [measure(args.folder, text, args.minutes) for text in args.texts]
    write_rows(grids, args.minutes)
    runs = [run for grid in grids for run in grid]
    arguments = ["FOLDER", *(path.name for path in args.texts), f"--minutes={args.minutes}"]
    record = provenance("tests.train.measure_choices", arguments)
    result = record | {"rows": result_rows(runs), "runs": runs}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
