"""The environment of the processes that tests start."""

from __future__ import annotations

import importlib.metadata
import os

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
