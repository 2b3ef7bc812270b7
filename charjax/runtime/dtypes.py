"""The precision of products: which dtype `config.model.dtype=auto` is on these devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from charjax.config import Config

_CPU_INFO = Path("/proc/cpuinfo")  # where Linux lists what the processor can do
_BFLOAT16_CPUS = {"avx512_bf16", "amx_bf16"}  # as it calls the x86 instructions for it
_BFLOAT16_GPUS = 8  # the compute capability of NVIDIA's from which on they have it


def resolve_dtype(config: Config, begun: Mapping[str, Any] | None = None) -> Config:
    """The config with nothing left to the machine: `model.dtype=auto` decided.

    Args:
      config: as it was asked for.
      begun: the config, as nested mappings, with which the run began that goes on: what was
        decided then stays, on whatever machine. None: it has not begun.
    """
    if config.model.dtype != "auto":
        return config
    dtype = begun["model"]["dtype"] if begun else fast_dtype()
    return replace(config, model=replace(config.model, dtype=dtype))


def fast_dtype() -> str:
    """The dtype of operands whose products, with float32 sums, these devices compute fastest.

    "bfloat16" on TPUs, on NVIDIA GPUs since Ampere, and on x86 processors that have
    instructions for it, where Linux says so; "float32" on all others.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        has_bfloat16 = bool(_BFLOAT16_CPUS & cpu_flags())
    elif device.platform == "gpu":
        major = str(getattr(device, "compute_capability", "")).partition(".")[0]
        has_bfloat16 = major.isdecimal() and int(major) >= _BFLOAT16_GPUS  # AMD's are no numbers
    else:
        has_bfloat16 = device.platform == "tpu"
    return "bfloat16" if has_bfloat16 else "float32"


def cpu_flags() -> set[str]:
    """What the first processor can do, as Linux calls it; nothing where no one says it."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return set(next(flags, "").split())
