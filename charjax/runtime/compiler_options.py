"""Options that `jax.jit` passes to XLA: only a program that is no part of another has them."""

from __future__ import annotations

import jax

from charjax.errors import InputError
from charjax.types import PyTree


def loop_compiler_options() -> dict[str, bool] | None:
    """The `compiler_options` of a program that spends its time in a scan over characters.

    On CPUs, XLA would otherwise copy the scan's carry at every character.
    """
    on_cpu = jax.default_backend() == "cpu"
    return {"xla_cpu_copy_insertion_use_region_analysis": True} if on_cpu else None


def network_compiler_options(implementation: str) -> dict[str, bool] | None:
    """The `compiler_options` of a program that runs the network over a text.

    On an H200, the Triton kernel that XLA chooses for the weight gradient of the persistent kernels
    makes the whole step of a GRU of 1,024 units a tenth slower than cuBLAS; at 512 units it is 4 %
    faster. Without Triton the step compiles in three quarters of the time. With XLA's loops Triton
    is a tenth faster.

    Args:
      implementation: of the recurrence.
    """
    if implementation == "persistent":
        return {"xla_gpu_enable_triton_gemm": False}
    return loop_compiler_options()


def check_concrete(params: PyTree) -> None:
    """Raises InputError for the parameters of a traced function, which have no values."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
        raise InputError(
            "parameters within jax.jit, jax.grad or jax.vmap: scores and samples run compiled "
            "programs of their own; call them outside, or CharRNN.run inside"
        )
