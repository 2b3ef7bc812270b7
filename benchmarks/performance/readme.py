"""The figures in README, from the result files."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.common import ratio
from benchmarks.performance.goals import KERAS
from benchmarks.performance.page import fastest
from benchmarks.result_files import command, load

START = "<!-- headline: written by python -m benchmarks.pages -->"
END = "<!-- /headline -->"


def row(figures: dict[str, Any]) -> str:
    """The table row of one config."""
    info, best = figures["info"], figures["best"]
    model = f"{info['cell'].upper()} {info['layers']} x {info['hidden']}"
    return (
        f"| `{figures['config']}` | {model}, {info['parameters'] / 1e6:.2f} M | {info['dtype']} | "
        f"{figures['steps']:,} | {figures['training_s'] / 60:.1f} min | "
        f"{figures['chars_per_second'] / 1000:.0f} k | **{best['val_loss']:.4f}** "
        f"({best['val_loss'] / math.log(2):.3f}) |"
    )


def speeds() -> str:
    """How many times as fast as its peers a training step is."""
    result = load("train_step_cpu")
    parts = []
    for cell in ("gru", "lstm"):
        peers = result["groups"][cell]["peers"]
        keras = fastest(peers, KERAS)
        names = {"torch float32": "torch", f"flax {cell}": "flax `nn.RNN`", keras: "best Keras"}
        over = [
            f"{ratio(peers['charjax float32'], peers[name]):.2f} over {label}"
            for name, label in names.items()
        ]
        parts.append(f"{cell.upper()} {', '.join(over)}")
    return (
        "Speedup of a float32 training step with 1,024 units on the same two cores: "
        f"{'; '.join(parts)}. [docs/performance.md](docs/performance.md) has bfloat16, sampling, "
        "GPUs, the goals that are not reached, and the commands."
    )


def block() -> str:
    """The section between the markers."""
    results = [load(name) for name in ("shakespeare", "quickstart")]
    shakespeare = results[0]
    evaluations = shakespeare["steps"] // shakespeare["run"]["train"]["eval_every"]
    sources = "; ".join(
        f"{command(r)}: {r['machine']}, jax {r['versions']['jax']}, {r['date']}" for r in results
    )
    quoted = "\n".join(f"    {line}".rstrip() for line in shakespeare["sample"].splitlines())
    return "\n".join(
        [
            "| config | model | matmuls in | steps | training | characters/s | "
            "validation, nats (bits) |",
            "|---|---|---|---|---|---|---|",
            *map(row, results),
            "",
            f"{sources}.",
            "",
            "The first loss is over all of the last 111,540 characters of tiny Shakespeare, the "
            f"best of {evaluations} evaluations. nanoGPT publishes 1.4697 for a Transformer of "
            "10.6 M parameters, the best of its evaluations over random windows of the same "
            "characters.",
            "",
            speeds(),
            "",
            "![training and validation loss](docs/img/shakespeare.png)",
            "",
            "A sample of the first model (`--prompt=ROMEO: --temperature=0.7 --seed=1`):",
            "",
            quoted,
        ]
    )


def with_block(text: str) -> str:
    """README with the section replaced."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{block()}\n{END}{after}"
