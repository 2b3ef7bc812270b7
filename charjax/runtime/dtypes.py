"""The compute dtype: what `config.model.dtype=auto` means on these devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from charjax.config import Config, ModelConfig, check_model_limits
from charjax.errors import InputError
from charjax.schema import parse
from charjax.types import PyTree

_CPU_INFO = Path("/proc/cpuinfo")
_BFLOAT16_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
_BFLOAT16_COMPUTE_CAPABILITY = 8  # NVIDIA Ampere


def resolve_dtype(config: Config, saved: Config | None = None) -> Config:
    """The config with `model.dtype="auto"` replaced by a dtype.

    Args:
      config: as the user gave it, or as `get_config` of a config file returns it.
      saved: the config of the run that is resumed: its dtype is kept, whatever this machine
        prefers. None: a new run, which takes `fast_dtype`.

    Raises:
      InputError: a field is outside its limits.
    """
    config = parse(Config, config, "config")
    if config.model.dtype != "auto":
        return config
    dtype = saved.model.dtype if saved else fast_dtype()
    return replace(config, model=replace(config.model, dtype=dtype))


def check_resolved(config: ModelConfig) -> None:
    """Raises InputError for a model that no device runs as it is.

    A field is outside its limits; or the dtype is "auto", which stands for one of these devices.
    """
    check_model_limits(config)
    if config.dtype == "auto":
        raise InputError(
            "dtype=auto: is not resolved yet; take the config that charjax.resolve_dtype returns"
        )


def fast_dtype() -> str:
    """The operand dtype of the fastest matmul with float32 accumulation on these devices.

    "bfloat16" on TPUs, on NVIDIA GPUs since Ampere, and on x86 CPUs with bf16
    instructions (known on Linux alone); "float32" on all others.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        has_bfloat16 = bool(_BFLOAT16_CPU_FLAGS & cpu_flags())
    elif device.platform == "gpu":
        # Of AMD GPUs it is a name such as gfx942.
        major = str(getattr(device, "compute_capability", "")).partition(".")[0]
        has_bfloat16 = major.isdecimal() and int(major) >= _BFLOAT16_COMPUTE_CAPABILITY
    else:
        has_bfloat16 = device.platform == "tpu"
    return "bfloat16" if has_bfloat16 else "float32"


def as_float32(tree: PyTree) -> PyTree:
    """A tree of arrays, of JAX or numpy and of any floating dtype, as float32 arrays of JAX."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def cpu_flags() -> set[str]:
    """The first CPU's features as /proc/cpuinfo names them; empty where there is no such file."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return set(next(flags, "").split())
