"""Launch of a persistent kernel: one CTA per SM, with its shared memory and its semaphores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from charjax.model.recurrence.pallas_hopper.cta import Cta, Position, Scratch
from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE, SWIZZLE, Tiling

# The layout in shared memory from which wgmma reads its operands.
_TRANSFORMS = (plgpu.TilingTransform((8, SWIZZLE)), plgpu.SwizzleTransform(2 * SWIZZLE))


def launch(
    body: Callable[..., None],
    tiling: Tiling,
    weights: Array,
    inputs: tuple[Array, ...],
    out_types: tuple[jax.ShapeDtypeStruct, ...],
    extra_scratch: tuple[Any, ...] = (),
) -> tuple[Array, ...]:
    """Runs a kernel with one CTA per SM.

    Args:
      body: called with one `Cta` per batch tile, then with references to the inputs, the outputs
        and `extra_scratch`.
      tiling: of the matmul over the grid.
      weights: `pack_weights` of the matmul's right operand.
      inputs: in global memory.
      out_types: of the outputs.
      extra_scratch: shared memory of the kernel, beside that of its matmul.
    """
    sums = (tiling.ctas, tiling.rows, tiling.n_per_cta) if tiling.split_k > 1 else (1, 1, 1)
    num_arrays = len(inputs) + len(out_types)

    def kernel(packed: Any, *refs: Any) -> None:
        arrays, partial_sums, refs = refs[:num_arrays], refs[num_arrays], refs[num_arrays + 1 :]
        scratch, extra = Scratch(*refs[: len(Scratch._fields)]), refs[len(Scratch._fields) :]
        ctas = _ctas(tiling, scratch, partial_sums)
        ctas[0].load_shared(packed.at[ctas[0].index], scratch.weights)
        body(ctas, *arrays, *extra)

    run = plgpu.kernel(
        kernel,
        out_type=(*out_types, jax.ShapeDtypeStruct(sums, jnp.float32)),
        scratch_types=(*_scratch(tiling), *extra_scratch),
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            # Else Pallas puts two around every store; `cta.py` says which are needed.
            unsafe_no_auto_barriers=True,
        ),
        **_grid(tiling),
    )
    return tuple(run(weights, *inputs))[: len(out_types)]


def _grid(tiling: Tiling) -> dict[str, Any]:
    grid = (tiling.batch_groups, tiling.groups, tiling.split_k)
    return {"grid": grid, "grid_names": ("batch_group", "group", "member")}


def _ctas(tiling: Tiling, scratch: Scratch, partial_sums: Any) -> list[Cta]:
    """This CTA, once for each batch tile of its batch group."""
    semaphores = plgpu.SemaphoreType.REGULAR((tiling.batch_groups * tiling.semaphores,))
    arrivals = [pl.get_global(semaphores) for _ in range(tiling.batch_tiles)]
    # A constant where there is one, so that offsets of rows are constants, too.
    only = tiling.batch_groups == 1
    batch_group = 0 if only else lax.axis_index("batch_group")
    position = Position(batch_group, lax.axis_index("group"), lax.axis_index("member"))
    return [Cta(tiling, position, i, scratch, partial_sums, a) for i, a in enumerate(arrivals)]


def _scratch(tiling: Tiling) -> tuple[Any, ...]:
    """Shared memory for the two operands, and the barriers of the copies to them."""
    weights = tiling.n_per_cta, tiling.k_per_cta
    operand = tiling.k_chunks, BATCH_TILE, tiling.k_per_chunk
    return (
        *(plgpu.SMEM(shape, jnp.bfloat16, transforms=_TRANSFORMS) for shape in (weights, operand)),
        plgpu.Barrier(num_barriers=tiling.k_chunks),
        plgpu.Barrier(num_barriers=1),
    )
