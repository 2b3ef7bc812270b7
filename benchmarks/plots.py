"""The plots of docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, THEIRS = "#c44e52", "#8c96a0"


def bars(peers: Mapping[str, Any], title: str, path: Path) -> None:
    """Characters per second of every peer, charjax's in colour."""
    names = sorted(peers, key=lambda name: peers[name]["chars_per_second"])
    figure, axes = plt.subplots(figsize=(7, 0.35 * len(names) + 1), layout="constrained")
    drawn = axes.barh(
        names,
        [peers[name]["chars_per_second"] for name in names],
        color=[OURS if name.startswith("charjax") else THEIRS for name in names],
    )
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
    axes.margins(x=0.15)
    axes.set(title=title, xlabel="characters per second")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def sweep(points: Iterable[Mapping[str, Any]], path: Path) -> None:
    """The fraction of the matrix product's rate over hidden size, a line a cell and dtype."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        shape = point["shape"]
        if (shape["batch"], shape["length"], shape["layers"]) == (64, 100, 1):
            name = f"{shape['cell'].upper()} {point['dtype']}"
            lines.setdefault(name, []).append((shape["hidden"], point["fraction_of_peak"]))
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, line in lines.items():
        axes.plot(*zip(*sorted(line), strict=True), marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.margins(y=0.08)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="hidden units", ylabel="fraction of the matmul peak")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
