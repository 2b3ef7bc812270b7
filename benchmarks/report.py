"""docs/performance.md and its plots, from the result files.

python -m benchmarks.report
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, progress, ratio
from benchmarks.goals import CPU, GPU, Goal
from benchmarks.machine import RESULTS
from benchmarks.tables import table

TEMPLATE = Path(__file__).parent / "performance.template.md"
PAGE = ROOT / "docs" / "performance.md"
BENCHMARKS = ("train_step", "sample", "end_to_end", "sweep")

Results = Mapping[tuple[str, str], Mapping[str, Any]]


def load(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(benchmark, device) -> the content of its result file, of those that are there."""
    found = {}
    for benchmark in BENCHMARKS:
        for device in ("cpu", "gpu"):
            path = folder / f"{benchmark}_{device}.json"
            if path.exists():
                found[benchmark, device] = json.loads(path.read_text(encoding="utf-8"))
    return found


def page(results: Results, template: str) -> str:
    """The whole page."""
    return string.Template(template).substitute(
        machine_cpu=_machines(results, "cpu"),
        goals_cpu=_goals(results, CPU),
        machine_gpu=_machines(results, "gpu"),
        goals_gpu=_goals(results, GPU),
        figures=_figures(results),
        sweep=_sweep(results),
        precision=table("precision"),
        weights=table("weights"),
        parts=table("parts"),
        blocks=table("blocks"),
    )


def reached(goal: Goal, results: Results) -> tuple[float, str] | None:
    """The figure of a goal, and the peer it is over; None: not measured."""
    result = results.get((goal.benchmark, goal.device), {"groups": {}})
    group = result["groups"].get(goal.group, {"peers": {}})
    peers = group["peers"]
    ours = _fastest(peers, goal.ours)
    if ours is None:
        return None
    if goal.step_s:
        chars = group["shape"]["batch"] * group["shape"]["length"]
        return chars / peers[ours]["chars_per_second"], ours
    if not goal.theirs:
        return peers[ours]["chars_per_second"], ours
    theirs = _fastest(peers, goal.theirs)
    return None if theirs is None else (ratio(peers[ours], peers[theirs]), theirs)


def _fastest(peers: Mapping[str, Any], names: Iterable[str]) -> str | None:
    there = [name for name in names if name in peers]
    return max(there, key=lambda name: peers[name]["chars_per_second"]) if there else None


def _goals(results: Results, goals: Sequence[Goal]) -> str:
    rows = []
    for goal in goals:
        found = reached(goal, results)
        wanted = f"≤ {goal.step_s * 1e3:g} ms" if goal.step_s else f"≥ {goal.at_least:,g}"
        if found is None:
            rows.append((goal.title, wanted, "not measured", f"`{goal.command}`"))
            continue
        figure, over = found
        good = figure <= goal.step_s if goal.step_s else figure >= goal.at_least
        shown = f"{figure * 1e3:.2f} ms" if goal.step_s else f"{figure:,.2f}"
        note = "reached" if good else "not reached"
        rows.append((goal.title, wanted, f"**{shown}**", note + _which(goal, over)))
    return _table(("", "goal", "measured", ""), rows)


def _which(goal: Goal, over: str) -> str:
    return f", over {over}" if len(goal.theirs) > 1 else ""


def _machines(results: Results, device: str) -> str:
    """Where and when; a line for each different record."""
    lines = []
    for benchmark in BENCHMARKS:
        result = results.get((benchmark, device))
        if result is None:
            continue
        versions = ", ".join(f"{name} {v}" for name, v in result["versions"].items())
        lines.append(
            f"* `{result['command']}`: {result['machine']}; {result['date']}; "
            f"Python {result['python']}, {versions}."
        )
    return "\n".join(lines) or "Not measured yet."


def _figures(results: Results) -> str:
    """Every peer of every group: characters per second, memory, loss."""
    parts = []
    for (benchmark, device), result in results.items():
        if benchmark == "sweep":
            continue
        for group, content in result["groups"].items():
            parts.append(f"### {benchmark}, {group}, {device.upper()}")
            rows = [
                (
                    name,
                    f"{figure['chars_per_second']:,.0f}",
                    f"{figure['peak_bytes'] / 2**20:,.0f}" if figure["peak_bytes"] else "",
                    f"{figure['about'].get('parameters', '')}",
                )
                for name, figure in content["peers"].items()
            ]
            parts.append(
                _table(("", "characters per second", "peak memory, MiB", "parameters"), rows)
            )
            parts += [f"* {name}: skipped, {why}" for name, why in content["skipped"].items()]
            if benchmark != "end_to_end":
                parts.append(f"![{benchmark} {group}]({_plot_name(benchmark, group, device)})")
    return "\n\n".join(parts) or "Not measured yet."


def _sweep(results: Results) -> str:
    parts = []
    for device in ("cpu", "gpu"):
        if ("sweep", device) not in results:
            parts.append(
                f"{device.upper()}: not measured; `python -m benchmarks.sweep --device={device}`"
            )
            continue
        rows = [_sweep_row(point) for point in results["sweep", device]["groups"]["points"]]
        header = ("cell", "dtype", "hidden", "layers", "batch", "length", "step, ms")
        parts.append(
            "The fraction is that of the step's unavoidable arithmetic over the rate of a large "
            "matrix product in the same dtype, measured in turn with it."
        )
        parts.append(_table((*header, "characters per second", "memory, MiB", "fraction"), rows))
        parts.append(f"![fraction of the matrix product's rate](sweep_{device}.png)")
    return "\n\n".join(parts)


def _sweep_row(point: Mapping[str, Any]) -> tuple[str, ...]:
    shape = point["shape"]
    return (
        shape["cell"],
        point["dtype"],
        *(str(shape[name]) for name in ("hidden", "layers", "batch", "length")),
        f"{point['step_s'] * 1e3:,.1f}",
        f"{point['chars_per_second']:,.0f}",
        f"{point['peak_bytes'] / 2**20:,.0f}",
        f"{point['fraction_of_peak']:.2f}",
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plot_name(benchmark: str, group: str, device: str) -> str:
    return f"{benchmark}_{group.replace(' ', '_')}_{device}.png"


def main() -> None:
    """Writes the page and the plots that it shows."""
    from benchmarks import plots

    results = load(RESULTS)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(results, TEMPLATE.read_text(encoding="utf-8")), encoding="utf-8")
    for (benchmark, device), result in results.items():
        if benchmark == "sweep":
            plots.sweep(result["groups"]["points"], PAGE.parent / f"sweep_{device}.png")
        elif benchmark != "end_to_end":
            for group, content in result["groups"].items():
                path = PAGE.parent / _plot_name(benchmark, group, device)
                plots.bars(content["peers"], f"{benchmark}, {group}, {device.upper()}", path)
    progress(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
