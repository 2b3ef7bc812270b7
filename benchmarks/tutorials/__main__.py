"""Trains the five tutorials and times them against their own frameworks.

python -m benchmarks.tutorials train grimm --variant=better --config.train.max_epochs=3
python -m benchmarks.tutorials timing

`train` runs `launch.py`, which gets all --config.field=value flags, and writes
`results/tutorial_<name>.json`. `counts` writes `results/tutorial_counts.json`, `timing` writes
`results/tutorial_timing.json` and needs a quiet machine. If Keras or torch are in other
environments, KERAS_PYTHON and TORCH_PYTHON name the interpreters.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import result_files
from benchmarks.performance.headline import answer, best, launch, run
from benchmarks.tutorials import timing
from benchmarks.tutorials.published import TUTORIALS

_JUDGED_CHARS = 20_000  # sampled at temperature 1 to count real words
CONFIGS = "configs/tutorials"
_WORD = re.compile(r"[A-Za-z']+")


def epochs(
    records: Sequence[dict[str, Any]], steps_per_epoch: int, chars_per_step: float
) -> list[dict[str, Any]]:
    """Metrics by epoch: mean training loss, seconds of training steps, validation loss."""
    rows: list[dict[str, Any]] = []
    before, loss_sum, seconds = 0, 0.0, 0.0
    for record in records:
        steps, before = record["step"] - before, record["step"]
        loss_sum += record["train_loss"] * steps
        seconds += steps * chars_per_step / record["chars_per_second"]
        if record["step"] % steps_per_epoch == 0:
            row = {"epoch": len(rows) + 1, "train_loss": loss_sum / steps_per_epoch}
            val_loss = {"val_loss": record["val_loss"]} if "val_loss" in record else {}
            rows.append(row | {"seconds": round(seconds, 2)} | val_loss)
            loss_sum = seconds = 0.0
    return rows


def info_of(config: str, *overrides: str) -> Any:
    """The output of `charjax info` for a config."""
    return answer("-m", "charjax", "info", f"--config={config}", *overrides)


def train(name: str, variant: str, workdir: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Trains, or resumes the run in `workdir`, and returns its figures."""
    config = f"{CONFIGS}/{name}.py" + (f":{variant}" if variant else "")
    saved, records = launch(config, workdir, *overrides)
    info, record, sample = info_of(config, *overrides), best(records), saved["config"]["sample"]
    written = _sample(sample["prompt"], workdir, 1.0, _JUDGED_CHARS)
    return {
        "config": config,
        "overrides": list(overrides),
        "run": saved["config"],
        "info": info,
        "notice": saved["corpus"]["notice"],
        "steps": records[-1]["step"],
        "epochs": epochs(
            records, info["steps_per_epoch"], _chars_per_step(saved["config"]["data"], info)
        ),
        "best": record and {key: record[key] for key in ("step", "val_loss")},
        "real_words": real_words(written, "\n".join(timing.documents(name))),
        "samples": {
            f"{t:g}": _sample(sample["prompt"], workdir, t) for t in sample["temperatures"]
        },
    }


def _chars_per_step(data: dict[str, Any], info: dict[str, Any]) -> float:
    """Targets per step, as the run counts them in its characters per second."""
    columns = 1 if data["targets"] == "last" else data["seq_len"]
    if data["batching"] == "stream" or not data["keep_partial"]:
        return float(data["batch_size"] * columns)
    return float(info["windows"] * columns / info["steps_per_epoch"])


def real_words(written: str, text: str) -> float:
    """Fraction of the words in `written` that also occur in `text`."""
    known, words = set(_WORD.findall(text)), _WORD.findall(written)
    return sum(word in known for word in words) / max(len(words), 1)


def _sample(prompt: str, workdir: Path, temperature: float, num_chars: int = 300) -> str:
    flags = (f"--workdir={workdir}", f"--prompt={prompt}", f"--temperature={temperature}")
    return run("-m", "charjax", "sample", *flags, f"--num_chars={num_chars}", "--seed=1")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train", help="train one tutorial and write its result file")
    one.add_argument("name", choices=sorted(TUTORIALS))
    one.add_argument("--variant", default="", help="held_out, better, ...; default: plain")
    one.add_argument("--workdir", type=Path, help="keep the run here; default: discarded")
    timed = commands.add_parser("timing", help="time training steps here and in the frameworks")
    timed.add_argument("--seconds", type=float, default=15.0, help="for each system; default 15")
    commands.add_parser("counts", help="write the output of `charjax info` for the plain configs")
    return parser


def main() -> None:
    """Runs one command."""
    parser = _parser()
    args, overrides = parser.parse_known_args()
    if overrides and args.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    if args.command == "counts":
        infos = {name: info_of(f"{CONFIGS}/{name}.py") for name in TUTORIALS}
        print(result_files.write("tutorial_counts", {"tutorials": infos}))
    elif args.command == "timing":
        print(timing.measure(args.seconds))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            workdir = args.workdir or Path(scratch) / "run"
            figures = train(args.name, args.variant, workdir, overrides)
        print(result_files.write(f"tutorial_{args.name}_{args.variant}".rstrip("_"), figures))


if __name__ == "__main__":
    main()
