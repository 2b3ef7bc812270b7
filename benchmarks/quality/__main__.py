"""Losses on tiny Shakespeare: arms on the development tenth, and recipes on the validation part.

    python -m benchmarks.quality arms --workdir=FOLDER [--only NAME ...] [--seeds 0 1 2]
    python -m benchmarks.quality recipe --workdir=FOLDER --config=shakespeare [--seeds 0 1 2]

`arms` trains each arm of `benchmarks.quality.arms` and writes results/quality_arms.json. `recipe`
trains a shipped config on the whole training part and reads its last weights once on the validation
part, in three ways; it writes results/quality_NAME.json. FOLDER keeps the runs, which go on where
they were interrupted. Other arms and seeds stay in the file. `benchmarks.tables` writes the tables.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks import result_files
from benchmarks.performance import headline
from benchmarks.performance.headline import NO_OTHER_TEXT, run
from benchmarks.quality.arms import ARMS, RECIPE, flags

Runs = Sequence[Mapping[str, Any]]
# How the validation part is read -> flags of `charjax score`.
READINGS = {"stream": (), "w256": ("--window=256",), "dynamic": ("--dynamic",)}


def train(config: str, workdir: Path, seed: int, *flags: str) -> dict[str, Any]:
    """Trains a shipped config; returns its size, time and the losses of its own evaluations."""
    figures = headline.train(config, workdir, NO_OTHER_TEXT, f"--config.seed={seed}", *flags)
    info = json.loads(run("-m", "charjax", "info", f"--workdir={workdir}"))
    return {
        "seed": seed,
        "device": figures["device"],
        "parameters": info["parameters"],
        "steps": figures["steps"],
        "minutes": round(figures["training_s"] / 60, 1),
        "train": round(figures["last"]["train_loss"], 4),
        "best": round(figures["best"]["val_loss"], 4),
        "last": round(figures["last"]["val_loss"], 4),
    }


def train_arm(name: str, folder: Path, seed: int) -> dict[str, Any]:
    """One arm with one seed, evaluated on the development tenth."""
    (arm,) = (arm for arm in ARMS if arm.name == name)
    changes = flags(arm.fields)
    measured = train("shakespeare", folder / f"{name}-{seed}", seed, *flags(RECIPE), *changes)
    return {"arm": name, "flags": changes} | measured


def train_recipe(config: str, folder: Path, seed: int) -> dict[str, Any]:
    """A shipped config with one seed; its last weights on the validation part."""
    measured = train(config, workdir := folder / f"{file_name(config)}-{seed}", seed)
    score = ("-m", "charjax", "score", f"--workdir={workdir}", "--checkpoint=newest", "--part=val")
    losses = {name: json.loads(run(*score, *flags)) for name, flags in READINGS.items()}
    return measured | {name: round(loss["nats_per_char"], 4) for name, loss in losses.items()}


def file_name(config: str) -> str:
    """A file name for a shipped config or its variant, such as `tutorials/grimm:better`."""
    return re.sub(r"\W", "_", config)


def keep(name: str, new: Mapping[str, Any], rows: Any) -> None:
    """Writes a result file with this run and those before of other arms or seeds."""
    before = (result_files.read(name) or {"runs": []})["runs"]
    key = [field for field in ("arm", "seed") if field in new]
    together = [*(one for one in before if any(one[f] != new[f] for f in key)), new]
    print(result_files.write(name, {"rows": rows(together), "runs": together}), flush=True)


def mean(values: Iterable[float]) -> str:
    """The mean, with the standard deviation of several seeds."""
    found = list(values)
    spread = f" ± {statistics.stdev(found):.4f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.4f}{spread}"


def arm_rows(runs: Runs) -> list[dict[str, Any]]:
    """A row for each arm, in the order of `ARMS`, over its seeds."""
    seeds_of = [(arm, [one for one in runs if one["arm"] == arm.name]) for arm in ARMS]
    return [
        {
            "arm": arm.name,
            "change": arm.change,
            "expected": arm.expected,
            **{field: seeds[0][field] for field in ("parameters", "steps")},
            "seeds": len(seeds),
            **{loss: mean(one[loss] for one in seeds) for loss in ("last", "best")},
        }
        for arm, seeds in seeds_of
        if seeds
    ]


def recipe_rows(runs: Runs) -> list[dict[str, Any]]:
    """A row for each seed, and their mean."""
    fields = ("device", "parameters", "steps", "minutes", *READINGS)
    rows = [
        {"seed": str(one["seed"])} | {field: one[field] for field in fields if field in one}
        for one in sorted(runs, key=lambda one: int(one["seed"]))
    ]
    return [*rows, {"seed": "mean"} | {name: mean(one[name] for one in runs) for name in READINGS}]


def main() -> None:
    """Trains what is asked for, and writes the result after each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("arms", "recipe"))
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--only", nargs="+", choices=[arm.name for arm in ARMS], metavar="ARM")
    parser.add_argument("--config", default="shakespeare", help="the name of a shipped config")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, as on a GPU")
    args = parser.parse_args()
    arms = [arm.name for arm in ARMS] if args.what == "arms" else []
    wanted = (args.only or arms) if arms else [args.config]
    with ThreadPoolExecutor(args.jobs) as pool:
        train_one = train_arm if arms else train_recipe
        runs = [pool.submit(train_one, one, args.workdir, s) for s in args.seeds for one in wanted]
        for run in as_completed(runs):
            name = "arms" if arms else file_name(args.config)
            keep(f"quality_{name}", run.result(), arm_rows if arms else recipe_rows)


if __name__ == "__main__":
    main()
