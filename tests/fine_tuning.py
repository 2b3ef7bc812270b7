"""What a base model is worth on a small text in another style: the table in docs/models.md.

    python -m tests.fine_tuning [page]

trains on 20,000 characters of Nietzsche for a minute each, for three seeds, from random weights and
from the built-in model, which has read Shakespeare; then writes the result file and the table; with
`page`, only the table. The two runs of a seed are side by side, so that they have the same minute
of the same machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from charjax.data.sources.named_corpora import read_named
from tests.environment import provenance, replaced_between

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "fine_tuning.json"
PAGE = ROOT / "docs" / "models.md"
START = "<!-- fine_tuning: written by python -m tests.fine_tuning -->\n"
END = "<!-- /fine_tuning -->"
CHARS, SEEDS, MINUTES = 20_000, (0, 1, 2), 1.0
FLAGS = (
    *("--config=configs/builtin.py", f"--config.train.max_minutes={MINUTES}"),
    *(
        "--config.train.max_steps=0",
        "--config.optim.schedule=constant",
        "--config.optim.warmup=0.0",
    ),
    *("--config.optim.final=0.0", "--config.optim.learning_rate=0.002", "--config.optim.ema=0.99"),
    *("--config.model.dropout=0.3", "--config.train.eval_every=20", "--config.sample.num_chars=0"),
    "--config.data.split=(0.7,0.15,0.15)",
)
STARTS = {"random weights": (), "the built-in model": ("--init_from=builtin",)}


def final_losses(text: Path, folder: Path, seed: int) -> list[float]:
    """The loss from each start, on the last 15 % of the text.

    Of the checkpoint with the best loss on the 15 % before them.
    """
    workdirs = [folder / f"{seed}-{number}" for number in range(len(STARTS))]
    train = ["train", *FLAGS, f"--config.seed={seed}", f"--config.data.path={text}"]
    commands = [[*train, *more] for more in STARTS.values()]
    for line in (commands, [["score", "--part=test"]] * len(commands)):
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "charjax", *command, f"--workdir={workdir}"],
                cwd=ROOT,
                stdout=subprocess.PIPE,
            )
            for command, workdir in zip(line, workdirs, strict=True)
        ]
        outputs = [process.communicate()[0] for process in started]
        assert all(process.returncode == 0 for process in started)
    return [json.loads(output)["nats_per_char"] for output in outputs]


def measure() -> dict[str, object]:
    text = b"".join(read_named("nietzsche").blocks).decode("utf-8")[100_000:][:CHARS]
    losses: dict[str, list[float]] = {start: [] for start in STARTS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "text.txt")
        file.write_text(text, encoding="utf-8")
        for seed in SEEDS:
            for start, loss in zip(STARTS, final_losses(file, Path(folder), seed), strict=True):
                losses[start].append(loss)
                print(seed, start, loss, flush=True)
    return provenance("tests.fine_tuning", []) | {
        "chars": CHARS,
        "minutes": MINUTES,
        "flags": [*FLAGS],
        "losses": losses,
    }


def table(result: dict) -> str:
    rows = "".join(
        f"| {start} | {' | '.join(f'{loss:.3f}' for loss in losses)} "
        f"| **{statistics.mean(losses):.3f}** |\n"
        for start, losses in result["losses"].items()
    )
    scratch, tuned = (statistics.mean(losses) for losses in result["losses"].values())
    return (
        "| first weights | seed 0 | seed 1 | seed 2 | mean |\n|---|---|---|---|---|\n"
        f"{rows}\nTest loss in nats per character after {result['minutes']:g} minute of training "
        f"on {result['chars']:,} characters of Nietzsche:\n"
        f"{100 * (1 - tuned / scratch):.0f} % lower ({result['machine']}, {result['date']}).\n"
    )


def write_page(result: dict) -> None:
    PAGE.write_text(replaced_between(PAGE.read_text("utf-8"), START, table(result), END), "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", nargs="?", choices=["page"], help="write the table alone")
    if not parser.parse_args().page:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    write_page(json.loads(RESULTS.read_text(encoding="utf-8")))
