"""Result files: environment of a measurement, their groups, and Markdown tables."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

_PACKAGES = (
    *("charjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("numpy", "torch", "keras"),
)
# A flag in a command that only names a place on this machine.
_PLACE = r" --(workdir|out|keras_python)[ =]('[^']*'|\S*)"
# Fields in which two results must be equal to be combined.
_SAME = ("machine", "python", "versions", "benchmark", "device", "small")
# Result files keep the command that made them. Modules that have moved since: old name -> new name.
_MOVED = {
    f"benchmarks.{name}": f"benchmarks.performance.{name}"
    for name in ("train_step", "sample", "end_to_end", "sweep", "headline", "persistent")
} | {"benchmarks.devices": "tests.faults.devices"}
# Flags that a module, by its name now, has had; they change nothing of what it measures.
_FORMER_FLAGS = {
    "benchmarks.tutorials": "--all",
    "benchmarks.performance.persistent": "--limit_s",
}
# The last commit that has the removed scripts whose results the pages still show.
_LAST_COMMIT = "c9abf59"
_REMOVED = {
    f"benchmarks.{name}"
    for name in ("blocks", "limits", "memory", "precision", "tutorial_parity", "weights")
} | {"benchmarks.devices starts", "benchmarks.devices dispatch"}
# Words of older result files that the pages replace in column names.
_COLUMNS = {
    "lanes": "batch",
    "lanes axis": "data axis",
    "lanes a device": "batch per device",
    "gflops a step": "gflops per step",
    "kept": "within limit",
}


def record() -> dict[str, Any]:
    """The machine, package versions, date and command of this process.

    Flags that only name a place on this machine are left out of the command.
    """
    versions = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", module.name.removesuffix(".__main__")] if module else sys.argv[:1]
    words = shlex.join([*program, *sys.argv[1:]])
    return {
        "machine": f"{_cpu()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": re.sub(_PLACE, "", words),
    }


def _cpu() -> str:
    if not (info := Path("/proc/cpuinfo")).exists():
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in pairs}
    family, model = fields.get("cpu family", "?"), fields.get("model", "?")
    return f"{fields.get('model name', platform.machine())} (family {family}, model {model})"


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
    words = result["command"].split()
    module = words[2]
    if module in _REMOVED or " ".join(words[2:4]) in _REMOVED:
        return f"`{result['command']}` (removed since; in commit {_LAST_COMMIT})"
    name = _MOVED.get(module, module)
    changes = [f"`{name}`"] if name != module else []
    former = _FORMER_FLAGS.get(name)
    changes += [f"without `{word}`" for word in words[3:] if word.partition("=")[0] == former]
    now = f" (now {' '.join(changes)})" if changes else ""
    return f"`{result['command']}`{now}"


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
