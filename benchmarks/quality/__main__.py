"""Losses of studies on a development tenth, and of recipes on the validation part.

    python -m benchmarks.quality {arms,ablation} --workdir=FOLDER [--only ARM ...] [--seeds 0 1 2]
    python -m benchmarks.quality recipe --workdir=FOLDER --config=shakespeare [--seeds 0 1 2]

`arms` and `ablation` train a study of `benchmarks.quality.arms`. `recipe` trains a shipped config
on the whole training part and reads its last weights once on the validation part, in three ways.
Each writes results/quality_NAME.json, where other arms and seeds stay; `benchmarks.pages` writes
the tables. FOLDER keeps the runs, which go on where they were interrupted.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import result_files
from benchmarks.common import count
from benchmarks.performance import headline
from benchmarks.performance.headline import NO_OTHER_TEXT, answer
from benchmarks.quality.arms import STUDIES

Runs = Sequence[Mapping[str, Any]]
# How the validation part is read -> flags of `charjax score`.
READINGS = {"stream": (), "w256": ("--window=256",), "dynamic": ("--dynamic",)}


def train(config: str, workdir: Path, seed: int, *flags: str) -> dict[str, Any]:
    """Trains a shipped config; returns its size, its time and the loss of its last weights."""
    figures = headline.train(config, workdir, NO_OTHER_TEXT, f"--config.seed={seed}", *flags)
    info = answer("-m", "charjax", "info", f"--workdir={workdir}")
    return {
        "seed": seed,
        "device": figures["device"],
        "parameters": info["parameters"],
        "steps": figures["steps"],
        "minutes": round(figures["training_s"] / 60, 1),
        "last": round(figures["last"]["val_loss"], 4),
    }


def train_arm(study: str, name: str, folder: Path, seed: int) -> dict[str, Any]:
    """One arm of a study with one seed, evaluated on the development tenth."""
    (arm,) = (arm for arm in STUDIES[study].arms if arm.name == name)
    flags = STUDIES[study].flags(arm)
    measured = train(STUDIES[study].config, folder / f"{name}-{seed}", seed, *flags)
    return {"arm": name, "flags": flags} | measured


def train_recipe(config: str, folder: Path, seed: int) -> dict[str, Any]:
    """A shipped config with one seed; its last weights on the validation part."""
    measured = train(config, workdir := folder / f"{file_name(config)}-{seed}", seed)
    score = ("-m", "charjax", "score", f"--workdir={workdir}", "--checkpoint=newest", "--part=val")
    losses = {name: answer(*score, *flags) for name, flags in READINGS.items()}
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


def over(recipe: Runs, runs: Runs) -> str:
    """The mean difference to the recipe's runs of the same seeds, with its standard error."""
    base = {one["seed"]: one["last"] for one in recipe}
    found = [one["last"] - base[one["seed"]] for one in runs if one["seed"] in base]
    error = f" ± {statistics.stdev(found) / len(found) ** 0.5:.4f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):+.4f}{error}" if found else ""


def arm_rows(study: str, runs: Runs) -> list[dict[str, Any]]:
    """A row for each arm of a study, in its order, over the arm's seeds."""
    arms = STUDIES[study].arms
    runs_of = {arm: [one for one in runs if one["arm"] == arm.name] for arm in arms}
    return [
        {
            "arm": arm.name,
            "change": arm.change,
            "expected": arm.expected,
            **{field: found[0][field] for field in ("parameters", "steps")},
            "minutes": round(statistics.mean(one["minutes"] for one in found), 1),
            "seeds": len(found),
            "loss": mean(one["last"] for one in found),
            "over the recipe": over(runs_of[arms[0]], found) if arm != arms[0] else "",
        }
        for arm, found in runs_of.items()
        if found
    ]


def recipe_rows(runs: Runs) -> list[dict[str, Any]]:
    """A row for each seed, and their mean."""
    fields = ("device", "parameters", "steps", "minutes", *READINGS)
    rows = [
        {"seed": str(one["seed"])} | {field: one[field] for field in fields if field in one}
        for one in sorted(runs, key=lambda one: int(one["seed"]))
    ]
    return [*rows, {"seed": "mean"} | {name: mean(one[name] for one in runs) for name in READINGS}]


def _parser() -> argparse.ArgumentParser:
    """A command for each study, and `recipe`."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--workdir", type=Path, required=True, help="where the runs are kept")
    shared.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    shared.add_argument("--jobs", type=count, default=1, help="runs side by side, as on a GPU")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    for name, study in STUDIES.items():
        arms = [arm.name for arm in study.arms]
        command = commands.add_parser(name, parents=[shared], help=f"arms of {study.config}")
        only = command.add_argument("--only", nargs="+", choices=arms, default=arms, metavar="ARM")
        only.help = f"default: all of {', '.join(arms)}"
    command = commands.add_parser("recipe", parents=[shared], help="a shipped config, unchanged")
    command.add_argument("--config", default="shakespeare", help="its name; default: shakespeare")
    return parser


def main() -> None:
    """Trains what is asked for, and writes the result after each run."""
    args = _parser().parse_args()
    if args.what in STUDIES:
        name, wanted = args.what, args.only
        rows, train_one = partial(arm_rows, name), partial(train_arm, name)
    else:
        name, wanted = file_name(args.config), [args.config]
        rows, train_one = recipe_rows, train_recipe
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(train_one, one, args.workdir, s) for s in args.seeds for one in wanted]
        for run in as_completed(runs):
            keep(f"quality_{name}", run.result(), rows)


if __name__ == "__main__":
    main()
