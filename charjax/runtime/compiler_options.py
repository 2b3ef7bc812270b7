"""Options that `jax.jit` passes to XLA."""

from __future__ import annotations

import jax


def loop_compiler_options() -> dict[str, bool] | None:
    """The `compiler_options` of a program that spends its time in a scan over characters.

    On CPUs, XLA would otherwise copy the scan's carry at every character.
    """
    on_cpu = jax.default_backend() == "cpu"
    return {"xla_cpu_copy_insertion_use_region_analysis": True} if on_cpu else None
