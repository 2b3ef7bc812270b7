"""What a proof leaves behind: its figures, and where, when and with what they were measured."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGES = ("charjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True)
class Result:
    """One file in benchmarks/results."""

    proof: str
    command: str
    date: str  # UTC
    seconds: float
    machine: dict[str, Any]
    versions: dict[str, str]
    figures: dict[str, Any]

    @classmethod
    def of(cls, proof: str, command: str, figures: dict[str, Any], *, seconds: float) -> Result:
        """The result of figures measured just now on this machine."""
        return cls(
            proof=proof,
            command=command,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 1),
            machine={
                "cpu": _cpu_model(),
                "cores": os.cpu_count(),
                "cores_used": len(os.sched_getaffinity(0)),
                "system": f"{platform.system()} {platform.machine()}",
            },
            versions={"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in _PACKAGES},
            figures=figures,
        )

    def to_json(self, *, indent: int | None = None) -> str:
        """The result as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=indent)


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
