"""docs/performance.md and its plots, from the result files."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ratio
from benchmarks.performance.goals import BF16, CPU, F32, GPU, SMALL_GOALS, TORCH, Goal
from benchmarks.result_files import command, markdown, read, table

BENCHMARKS = ("train_step", "sample", "end_to_end", "runs", "sweep")

Results = Mapping[tuple[str, str], Mapping[str, Any]]


def load() -> dict[tuple[str, str], dict[str, Any]]:
    """(benchmark, device) -> the content of its result file, if there is one."""
    wanted = itertools.product((*BENCHMARKS, "sweep_small"), ("cpu", "gpu"))
    return {key: result for key in wanted if (result := read("_".join(key)))}


def page(results: Results) -> str:
    """The whole page."""
    template = Path(__file__).with_name("template.md").read_text(encoding="utf-8")
    return string.Template(template).substitute(
        machine_cpu=_machines(results, "cpu"),
        goals_cpu=goals_table(results, CPU),
        machine_gpu=_machines(results, "gpu"),
        goals_gpu=goals_table(results, GPU),
        persistent=_persistent(read("persistent_gpu") or {"groups": {}}),
        figures=_figures(results),
        sweep=_sweep(results),
        sweep_small=_sweep_small(results.get(("sweep_small", "cpu"), {"groups": {}})),
        precision=table("precision"),
        weights=table("weights"),
        blocks=table("blocks"),
    )


def reached(goal: Goal, results: Results) -> tuple[float, str] | None:
    """The measured value of a goal and the peer it is relative to; None: not measured."""
    result = results.get((goal.benchmark, goal.device), {"groups": {}})
    group = result["groups"].get(goal.group, {"peers": {}})
    if "wall_s" in group:
        return group["wall_s"], ""
    peers = group["peers"]
    ours = fastest(peers, goal.ours)
    if ours is None:
        return None
    if goal.at_most_s:
        chars = group["shape"]["batch"] * group["shape"]["length"]
        return chars / peers[ours]["chars_per_second"], ours
    if not goal.theirs:
        return peers[ours]["chars_per_second"], ours
    theirs = fastest(peers, goal.theirs)
    return None if theirs is None else (ratio(peers[ours], peers[theirs]), theirs)


def fastest(peers: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The name of the fastest of the peers that were measured; None: none was."""
    there = [name for name in names if name in peers]
    return max(there, key=lambda name: peers[name]["chars_per_second"]) if there else None


def goals_table(results: Results, goals: Sequence[Goal]) -> str:
    """A row for each goal: what was wanted, what was measured."""
    rows = []
    for goal in goals:
        wanted = f"≤ {_seconds(goal.at_most_s)}" if goal.at_most_s else f"≥ {goal.at_least:,.7g}"
        if not (found := reached(goal, results)):
            rows.append((goal.title, wanted, "not measured", f"`{goal.command}`"))
            continue
        figure, over = found
        good = figure <= goal.at_most_s if goal.at_most_s else figure >= goal.at_least
        shown = f"{figure:,.0f}" if figure >= 1000 else f"{figure:.2f}"
        if goal.at_most_s:
            shown = _seconds(figure)
        note = "reached" if good else "not reached"
        if len(goal.theirs) > 1:
            note += f", over {over}"
        rows.append((goal.title, wanted, f"**{shown}**", note))
    return markdown(("", "goal", "measured", ""), rows)


def _seconds(figure: float) -> str:
    return f"{figure:.3g} s" if figure >= 1 else f"{figure * 1e3:.3g} ms"


def _machines(results: Results, device: str) -> str:
    """Each machine with its versions, and below it the commands and dates of its benchmarks."""
    commands: dict[str, list[str]] = {}
    for benchmark in BENCHMARKS:
        if not (result := results.get((benchmark, device))):
            continue
        versions = ", ".join(f"{name} {v}" for name, v in result["versions"].items())
        devices = sorted(set(re.findall(r"'(NVIDIA [^']+)'", str(result))))
        machine = ", ".join((result["machine"], *devices, f"Python {result['python']}", versions))
        commands.setdefault(machine, []).append(f"* {command(result)}: {result['date']}")
    parts = (f"{machine}:\n\n" + "\n".join(lines) for machine, lines in commands.items())
    return "\n\n".join(parts) or "Not measured yet."


def _figures(results: Results) -> str:
    """Tables of all peers of all groups: characters per second, memory, parameters."""
    parts = []
    for (benchmark, device), result in results.items():
        if benchmark.startswith(("runs", "sweep")):
            continue
        for group, content in result["groups"].items():
            parts.append(f"### {benchmark}, {group}, {device.upper()}")
            rows = [
                (
                    name,
                    f"{figure['chars_per_second']:,.0f}",
                    f"{figure['peak_bytes'] / 2**20:,.0f}" if figure["peak_bytes"] else "",
                    f"{figure['about']['parameters']:,}" if "parameters" in figure["about"] else "",
                )
                for name, figure in content["peers"].items()
            ]
            header = ("", "characters per second", "peak memory, MiB", "parameters")
            parts.append(markdown(header, rows))
            parts += _skipped(content["skipped"])
    return "\n\n".join(parts) or "Not measured yet."


def _skipped(reasons: Mapping[str, str]) -> list[str]:
    """A line for each reason, with the peers that were skipped for it."""
    peers = {why: [name for name in reasons if reasons[name] == why] for why in reasons.values()}
    return [f"Skipped: {', '.join(names)} ({why})." for why, names in peers.items()]


def _sweep(results: Results) -> str:
    parts = []
    for device in ("cpu", "gpu"):
        if ("sweep", device) not in results:
            command_line = f"python -m benchmarks.performance.sweep --device={device}"
            parts.append(f"{device.upper()}: not measured; `{command_line}`")
            continue
        rows = [_sweep_row(point) for point in results["sweep", device]["groups"]["points"]]
        header = ("cell", "dtype", "hidden", "layers", "batch", "length", "step, ms")
        parts.append(markdown((*header, "characters per second", "memory, MiB", "fraction"), rows))
        parts.append(f"![fraction of the matmul's FLOP/s](img/sweep_{device}.png)")
    return "\n\n".join(parts)


def _sweep_small(result: Mapping[str, Any]) -> str:
    rows = []
    for name, (goal_f32, goal_bf16) in SMALL_GOALS.items():
        group = {"peers": {}, "fraction_of_matmul": {}} | result["groups"].get(name, {})
        peers, fractions = group["peers"], group["fraction_of_matmul"]
        if not {F32, BF16, TORCH}.issubset(peers):
            rows.append((name, "not measured", *[""] * 5))
            continue
        speeds = [f"{peers[peer]['chars_per_second']:,.0f}" for peer in (TORCH, F32, BF16)]
        ratios = [ratio(peers[ours], peers[TORCH]) for ours in (F32, BF16)]
        goals = zip(ratios, (goal_f32, goal_bf16), strict=True)
        over_torch = (f"**{found:.2f}** (≥ {goal})" for found, goal in goals)
        over_matmul = ", ".join(f"{fractions[peer]:.2f}" for peer in fractions)
        rows.append((name, *speeds, *over_torch, over_matmul))
    header = ("", TORCH, F32, BF16, "float32 over torch", "bfloat16 over torch", "over a matmul")
    found = markdown(header, rows)
    if not result["groups"]:
        return f"{found}\n\n(`python -m benchmarks.performance.sweep --over_torch`)"
    return f"{found}\n\n({command(result)}: {result['machine']}; {result['date']}.)"


def _persistent(result: Mapping[str, Any]) -> str:
    rows, parts = [], ("forward", "with_gradient", "train_step")
    for cell, part in itertools.product(("gru", "lstm"), parts):
        # Older files call XLA's loop fast, and the kernels without clusters "1 peers".
        times = {"fast": {}, "1 peers": {}} | result["groups"].get(cell, {}).get("times", {})
        xla = (times["fast"] | times.get("xla", {})).get(f"{part}_ms")
        ours = (times["1 peers"] | times.get("persistent", {})).get(f"{part}_ms")
        shown = (f"{xla:.2f} ms", f"{ours:.2f} ms", f"{xla / ours:.2f}") if xla and ours else ()
        title = f"{cell.upper()}, {part.replace('_', ' ')}"
        rows.append((title, *(shown or ("not measured", "", ""))))
    table = markdown(("", "XLA's loop", "persistent", "times as fast"), rows)
    if result["groups"]:
        gpu = result["groups"]["gpu"]["device"]
        table += f"\n\n({command(result)}: {gpu}; {result['date']}.)"
    return table


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


def plot_sweeps(results: Results, folder: Path) -> None:
    """Writes a plot for each device whose sweep was measured."""
    for device in ("cpu", "gpu"):
        if sweep := results.get(("sweep", device)):
            _plot_sweep(sweep["groups"]["points"], folder / f"sweep_{device}.png")


def _plot_sweep(points: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Plots the fraction of the matmul's FLOP/s over hidden size, a line per cell and dtype."""
    import matplotlib.pyplot as plt

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
