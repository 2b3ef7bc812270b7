"""The recurrence as persistent kernels on one NVIDIA Hopper GPU, with bfloat16 matmuls.

The kernels replace the two loops over time of `charjax.model.recurrence.xla`, and differ from
it only in the order of sums. XLA computes the input gates before the loop, except those that the
kernel looks up by token, and after it the weight gradient, as one matmul over all time steps.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, BFloat16, Float

from charjax.model.cells import CELLS
from charjax.model.matmul import dot_leading
from charjax.model.recurrence.base import Inputs, Layer, LayerResets, Operands, Result, Weights
from charjax.model.recurrence.pallas_hopper import kernels
from charjax.model.recurrence.pallas_hopper.plan import LaunchConfig, Plan, make_plan
from charjax.model.recurrence.pallas_hopper.tiling import (
    BATCH_TILE,
    Tiling,
    from_ctas,
    pack_weights,
    to_ctas,
)

# GRU and LSTM, with and without resets, were checked on an H100 and an H200, the vanilla RNN in
# interpret mode alone.
_CELLS = ("gru", "lstm", "rnn")
_HOPPER = "9.0"  # compute capability; later GPUs have no wgmma


class _Residuals(NamedTuple):
    operands: Operands
    states: BFloat16[Array, "steps batch hidden"]
    residuals: Float[Array, "time ctas residuals batch units"]


def supports(layer: Layer) -> str:
    """Why the kernels cannot run a layer on these devices; "" if they can."""
    devices = jax.devices()
    capability = str(getattr(devices[0], "compute_capability", "none"))
    if len(devices) != 1 or devices[0].platform != "gpu" or capability != _HOPPER:
        found = f"{len(devices)} x {devices[0].device_kind}"
        return f"needs one NVIDIA Hopper GPU (H100, H200), found {found}"
    if layer.cell not in _CELLS:
        return f"has no kernels for config.model.cell={layer.cell}, only for {', '.join(_CELLS)}"
    if layer.dtype != "bfloat16":
        return f"needs config.model.dtype=bfloat16, not {layer.dtype}"
    launch = launch_config()
    if make_plan(layer.hidden, CELLS[layer.cell].gates, layer.batch, launch) is None:
        return (
            f"config.model.hidden={layer.hidden} does not fit into the shared memory of "
            f"{launch.num_sms} SMs; multiples of 128 up to 1024 do"
        )
    return ""


def run(cell: str, dtype: DTypeLike, operands: Operands) -> Result:
    """One layer over a sequence; see `charjax.model.recurrence.api.run`."""
    del dtype  # bfloat16, see `supports`
    return run_with(launch_config(), cell, operands)


def run_with(launch: LaunchConfig, cell: str, operands: Operands) -> Result:
    """One layer over a sequence; matmul operands are bfloat16, all else is float32.

    A batch is padded to full passes. Padded rows start from zeros and nothing reads what they
    compute. So their gradients are zeros, which add nothing to those of the weights and of the
    table.

    Args:
      launch: how the kernels are launched.
      cell: a name in `CELLS`.
      operands: what the layer reads.

    Raises:
      ValueError: the layer does not fit the GPU.
    """
    batch, hidden = operands.carry[0].shape
    plan = make_plan(hidden, CELLS[cell].gates, batch, launch)
    if plan is None:
        raise ValueError(f"no tiling of a {cell} with {hidden} units for {launch.num_sms} SMs")
    recurrence = partial(_recurrence, cell, plan)
    if plan.rows == batch:
        return recurrence(operands)
    outputs, last = recurrence(_pad_batch(operands, plan.rows - batch))
    return outputs[..., :batch], tuple(state[:batch] for state in last)


def launch_config() -> LaunchConfig:
    """The launch configuration for this process's GPU."""
    return LaunchConfig(int(getattr(jax.devices()[0], "core_count", LaunchConfig.num_sms)))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recurrence(cell: str, plan: Plan, operands: Operands) -> Result:
    return _forward(cell, plan, operands)[0]


def _forward(cell: str, plan: Plan, operands: Operands) -> tuple[Result, _Residuals]:
    inputs, weights, carry, resets = operands
    tiling, hidden, gates = plan.forward, weights.kernel.shape[0], CELLS[cell].gates
    ctas, units = tiling.ctas, tiling.units
    bias = jnp.zeros(hidden, jnp.float32) if weights.bias is None else weights.bias
    bias = jnp.broadcast_to(bias.reshape(ctas, 1, units), (ctas, BATCH_TILE, units))
    packed = pack_weights(weights.kernel.reshape(hidden, gates, hidden), tiling)
    if inputs.tokens is not None:  # the kernel checks no bounds, and reads a token's row
        tokens = jnp.clip(inputs.tokens, 0, inputs.igates.shape[1] - 1)
        inputs = Inputs(inputs.igates.T, tokens)
    arrays = inputs, bias, to_ctas(jnp.stack(carry), tiling), packed, _keep_units(resets, tiling)
    states, outputs, residuals, last = kernels.forward(CELLS[cell], tiling, *arrays)
    return (outputs, tuple(from_ctas(last))), _Residuals(operands, states, residuals)


def _backward(cell: str, plan: Plan, res: _Residuals, grads: Result) -> tuple[Operands]:
    (inputs, weights, _, resets), (d_outputs, d_last) = res.operands, grads
    tiling, hidden = plan.backward, weights.kernel.shape[0]
    packed = pack_weights(weights.kernel.T[:, None], tiling)
    arrays = res.residuals, d_outputs, to_ctas(jnp.stack(d_last), tiling), packed
    found = kernels.backward(CELLS[cell], tiling, *arrays, _keep_units(resets, tiling))
    d_hgates, d_candidate, d_carry = found
    # As the kernels wrote it: a transposed copy would take longer than what reads it.
    d_kernel, d_bias = dot_leading(res.states[:-1], d_hgates, jnp.bfloat16), None
    if weights.bias is not None:
        d_bias = jnp.sum(d_hgates[..., -hidden:], axis=(0, 1), dtype=jnp.float32)
    d_inputs = _input_grad(inputs, d_hgates, d_candidate if CELLS[cell].reset_after else None)
    return (Operands(d_inputs, Weights(d_kernel, d_bias), tuple(from_ctas(d_carry))),)


_recurrence.defvjp(_forward, _backward)


def _pad_batch(operands: Operands, rows: int) -> Operands:
    """The operands with rows of zeros at the end of the batch, which are never reset."""

    def pad_last(array: Array) -> Array:
        return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, rows)])

    inputs, weights, carry, resets = operands
    if inputs.tokens is None:
        inputs = Inputs(pad_last(inputs.igates))
    else:
        inputs = inputs._replace(tokens=pad_last(inputs.tokens))
    carry = tuple(jnp.pad(state, ((0, rows), (0, 0))) for state in carry)
    return Operands(inputs, weights, carry, None if resets is None else pad_last(resets))


def _input_grad(
    inputs: Inputs,
    d_hgates: BFloat16[Array, "time batch gates"],
    d_candidate: BFloat16[Array, "time batch hidden"] | None,
) -> Inputs:
    """The gradient of the inputs, from what the backward kernel returns."""
    if inputs.tokens is None:
        features = None if d_candidate is None else jnp.moveaxis(d_candidate, 2, 0)
        return inputs.cotangent(jnp.moveaxis(d_hgates, 2, 0), features)
    ones = jax.nn.one_hot(inputs.tokens, inputs.igates.shape[1], dtype=jnp.bfloat16)
    d_table = dot_leading(d_hgates, ones, jnp.bfloat16)
    if d_candidate is not None:
        # Of matmuls with a common operand XLA makes one, and copies their other operands for it.
        ones = jax.lax.optimization_barrier(ones)
        d_candidate = dot_leading(d_candidate, ones, jnp.bfloat16)
    return inputs.cotangent(d_table, d_candidate)


def _keep_units(resets: LayerResets | None, tiling: Tiling) -> kernels.Keep | None:
    if resets is None:
        return None
    keep = jnp.pad(1 - resets.astype(jnp.float32), ((0, 1), (0, 0)), constant_values=1)
    return jnp.broadcast_to(keep[..., None], (*keep.shape, tiling.units))
