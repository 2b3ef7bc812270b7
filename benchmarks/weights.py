"""What each precision of `charjax sample --weights` costs in loss, on a trained run.

    python -m benchmarks.weights
    python -m benchmarks.weights --workdir=runs/mine

The best checkpoint is scored on its run's own validation part. Writes `results/weights.json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.common import progress
from charjax.cli.arguments import WEIGHTS
from charjax.data.dataset import load_dataset
from charjax.errors import CharjaxError
from charjax.inference.evaluate import score
from charjax.inference.load import load_trained, with_dtype
from charjax.runtime.display import make_display


def rows(workdir: Path) -> list[dict[str, Any]]:
    """One row a precision."""
    trained = load_trained(workdir, which="best")
    with make_display(sys.stderr).task("reading the text") as update:
        text = load_dataset(trained.config, report=progress, progress=update)
    if text.corpus.sha256 != trained.meta["corpus"]["sha256"]:
        sys.exit(f"{workdir}: was trained on another text than {text.corpus.name} is now")
    measured = []
    for weights in WEIGHTS:
        model = with_dtype(trained, weights).config.model
        result = score(model, trained.params, text.parts.val.ids)
        measured.append(
            {
                "run": trained.meta["corpus"]["name"],
                "model": f"{model.cell} {model.layers} x {model.hidden}",
                "chars": result.chars,
                "weights": weights,
                "nats_per_char": f"{result.nats_per_char:.5f}",
            }
        )
        progress(f"{measured[-1]}")
    return measured


def main() -> None:
    """Writes the table's rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/shakespeare"), help="the folder of a run"
    )
    workdir = parser.parse_args().workdir
    try:
        print(machine.write("weights", {"rows": rows(workdir)}))
    except CharjaxError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
