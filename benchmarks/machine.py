"""Where and when a figure was measured: the head of every result file."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

_PACKAGES = (
    "charjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "torch",
    "keras",
)


def record() -> dict[str, Any]:
    """The machine, the versions, the date and the command of this process.

    The folder that a run happened to lie in is no part of the command.
    """
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", module.name.removesuffix(".__main__")] if module else sys.argv[:1]
    return {
        "machine": f"{_cpu()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join([*program, *filter(_lasting, sys.argv[1:])]),
    }


def write(name: str, figures: Mapping[str, Any]) -> Path:
    """Writes `results/<name>.json`: the record of this process, and the figures."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record() | dict(figures), indent=2) + "\n", encoding="utf-8")
    return path


def _lasting(argument: str) -> bool:
    return not argument.startswith(("--scratch=", "--workdir=", "--out=", "--keras_python="))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(
            (part.strip() for part in line.split(":", 1))
            for line in info.read_text().splitlines()
            if ":" in line
        )
        family, model = fields.get("cpu family", "?"), fields.get("model", "?")
        return f"{fields.get('model name', platform.machine())} (family {family}, model {model})"
    return platform.processor() or platform.machine()
