"""Writes README's figures from the committed result files: python -m benchmarks.readme."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.common import ratio
from benchmarks.goals import KERAS
from benchmarks.machine import RESULTS

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- headline: written by python -m benchmarks.readme -->", "<!-- /headline -->"


def row(figures: dict[str, Any]) -> str:
    """One config's line of the table."""
    info, best = figures["info"], figures["best"]
    model = f"{info['cell'].upper()} {info['layers']} x {info['hidden']}"
    return (
        f"| `{figures['config']}` | {model}, {info['parameters'] / 1e6:.2f} M | {info['dtype']} | "
        f"{figures['steps']:,} | {figures['training_s'] / 60:.1f} min | "
        f"{figures['chars_per_second'] / 1000:.0f} k | **{best['val_loss']:.4f}** "
        f"({best['val_loss'] / math.log(2):.3f}) |"
    )


def evaluations(figures: dict[str, Any]) -> int:
    """How many a run had."""
    steps: int = figures["steps"] // figures["run"]["train"]["eval_every"]
    return steps


def speeds() -> str:
    """How many times as fast a training step and a text are as the peers'."""
    result = json.loads((RESULTS / "train_step_cpu.json").read_text(encoding="utf-8"))
    parts = []
    for cell in ("gru", "lstm"):
        peers = result["groups"][cell]["peers"]
        keras = max(
            (name for name in KERAS if name in peers),
            key=lambda name: float(peers[name]["chars_per_second"]),
        )
        names = {"torch float32": "torch", f"flax {cell}": "flax `nn.RNN`", keras: "Keras (best)"}
        over = [
            f"{ratio(peers['charjax float32'], peers[name]):.2f} times {label}"
            for name, label in names.items()
        ]
        parts.append(f"{cell.upper()} {', '.join(over)}")
    return (
        "Characters a second of a training step, float32, hidden 1024, on the same two cores, in "
        f"turn: {'; '.join(parts)}. bfloat16, sampling, goals missed and the commands are in "
        "[docs/performance.md](docs/performance.md)."
    )


def block() -> str:
    """The section between the markers."""
    results = [
        json.loads((RESULTS / f"{n}.json").read_text()) for n in ("shakespeare", "quickstart")
    ]
    shakespeare = results[0]
    quoted = "\n".join(f"    {line}".rstrip() for line in shakespeare["sample"].splitlines())
    return "\n".join(
        [
            "| config | model | products | steps | training | characters/s | "
            "validation, nats (bits) |",
            "|---|---|---|---|---|---|---|",
            *map(row, results),
            "",
            "; ".join(
                f"`{r['command']}`: {r['machine']}, jax {r['versions']['jax']}, {r['date']}"
                for r in results
            )
            + ".",
            "",
            "The first loss is that of the last 111,540 characters of tiny Shakespeare, all of "
            f"them, and the best of {evaluations(shakespeare)} evaluations on them. nanoGPT "
            "publishes 1.4697 for a Transformer ten times this size, the best of its evaluations "
            "over random windows of the same characters.",
            "",
            speeds(),
            "",
            "![training and validation loss](docs/shakespeare.png)",
            "",
            "It writes (`--prompt=ROMEO: --temperature=0.7 --seed=1`):",
            "",
            quoted,
        ]
    )


def main() -> None:
    """Replaces the section in place."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    README.write_text(f"{before}{START}\n{block()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
