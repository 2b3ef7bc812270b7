"""Result files: environment of a measurement, their groups, and Markdown tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.environment import provenance

RESULTS = Path(__file__).parent / "results"

# Fields in which two results must be equal to be combined.
_SAME = ("machine", "python", "versions", "benchmark", "device", "small")
# Result files keep the command that made them. How one begins -> what of it has changed since.
_MOVED = ("train_step", "sample", "end_to_end", "sweep", "headline", "persistent")
_REMOVED = (
    *("blocks", "limits", "memory", "precision", "tutorial_parity", "weights"),
    *("devices starts", "devices dispatch"),
)
_CHANGES = {
    "benchmarks.persistent --rounds=3 --limit_s=70": "now `benchmarks.performance.persistent` "
    "without `--limit_s=70`",
    "benchmarks.performance.runs shakespeare": "now without `shakespeare`",
    "benchmarks.tutorials timing --all": "now without `--all`",
    **{f"benchmarks.{name}": f"now `benchmarks.performance.{name}`" for name in _MOVED},
    **{f"benchmarks.{name}": "removed since; in commit c9abf59" for name in _REMOVED},
    "benchmarks.devices": "now `tests.faults.devices`",
}
# Words of older result files that the pages replace in column names.
_COLUMNS = {
    "lanes": "batch",
    "lanes axis": "data axis",
    "lanes a device": "batch per device",
    "gflops a step": "gflops per step",
    "kept": "within limit",
}


def record() -> dict[str, Any]:
    """The `provenance` of what this process measures."""
    module = getattr(sys.modules["__main__"].__spec__, "name", sys.argv[0])
    return provenance(module.removesuffix(".__main__"), sys.argv[1:])


def write(name: str, figures: Mapping[str, Any]) -> Path:
    """Writes the record of this process and the figures to `results/<name>.json`."""
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record() | dict(figures), indent=2) + "\n", encoding="utf-8")
    return path


def read(name: str) -> dict[str, Any] | None:
    """The content of `results/<name>.json`; None if there is no such file."""
    return load(name) if (RESULTS / f"{name}.json").exists() else None


def load(name: str) -> dict[str, Any]:
    """The content of `results/<name>.json`, which must exist."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def keep_other_groups(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The new result with those groups of the old one that were not measured again.

    Nothing of the old result is kept if the machine or a version has changed.
    """
    if any(before.get(name) != now[name] for name in _SAME):
        return dict(now)
    return dict(now) | {"groups": dict(before["groups"]) | dict(now["groups"])}


def command(result: Mapping[str, Any]) -> str:
    """The command that made a result, in backquotes, and what of it has changed since."""
    words = result["command"].removeprefix("python -m ")
    changes = (change for start, change in _CHANGES.items() if words.startswith(start))
    change = next(changes, "")
    return f"`{result['command']}`" + (f" ({change})" if change else "")


def table(name: str) -> str:
    """The rows of `results/<name>.json` as a Markdown table with its source below."""
    result = load(name)
    rows = result["rows"]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = [key.replace("_", " ") for key in keys]
    header = [_COLUMNS.get(column, column) for column in columns]
    found = markdown(header, ([_cell(row.get(key, "")) for key in keys] for row in rows))
    source = f"{command(result)}, {result['machine']}, jax {result['versions']['jax']}"
    link = f"[{name}.json](../benchmarks/results/{name}.json)"
    return f"{found}\n\n({source}, {result['date']}: {link}.)\n"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells."""
    lines = ["| " + " | ".join(line) + " |" for line in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        return f"{value:.1e}"
    if isinstance(value, int | float):
        return f"{value:,}"
    return str(value)
