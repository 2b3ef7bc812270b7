"""The environment of the processes that tests start, and of what they measure."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# XLA's newer code generator takes three times as long for the same values, and a program in many
# parts half as long again. jaxlib 0.10 has both; 0.12 ends the process at the unknown flag.
_IS_OLD = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)
FAST_COMPILES = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if _IS_OLD
    else ""
)


def with_devices(count: int) -> dict[str, str]:
    """This process's environment, for a process of charjax with so many CPU devices."""
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    devices = f"--xla_force_host_platform_device_count={count} " if count > 1 else ""
    return environment | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices + FAST_COMPILES}


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, at any depth, by their paths in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def replaced_between(page: str, start: str, new: str, end: str) -> str:
    """A page with what is between two markers replaced, as by a table of new results."""
    before, _, rest = page.partition(start)
    return before + start + new + end + rest.partition(end)[2]


def existing(path: str) -> Path:
    """The argparse type of a file or folder that there is."""
    if not (found := Path(path)).exists():
        raise argparse.ArgumentTypeError(f"{path}: no such file or folder")
    return found


_PACKAGES = (
    *("charjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("numpy", "torch", "keras"),
)


def provenance(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Where and when a result was measured: machine, versions, date and command.

    Flags that only name a place on this machine are left out of the command.
    """
    fields, versions = {}, {}
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        pairs = (line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in pairs}
    family, model = fields.get("cpu family", "?"), fields.get("model", "?")
    cpu = fields.get("model name", platform.machine())
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    command = shlex.join(["python", "-m", module, *arguments])
    return {
        "machine": f"{cpu} (family {family}, model {model}), {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": re.sub(r" --(workdir|out|keras_python)[ =]('[^']*'|\S*)", "", command),
    }
