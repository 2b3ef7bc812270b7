"""The environment of the processes that tests start."""

from __future__ import annotations

import os

# XLA's newer code generator takes three times as long for the same values.
FAST_COMPILES = "--xla_cpu_use_fusion_emitters=false"


def with_devices(count: int) -> dict[str, str]:
    """This process's environment, for a process of charjax with so many CPU devices."""
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    devices = f"--xla_force_host_platform_device_count={count} " if count > 1 else ""
    return environment | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices + FAST_COMPILES}
