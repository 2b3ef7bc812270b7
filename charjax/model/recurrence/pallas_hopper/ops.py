"""The persistent recurrence: the fast one's loops as GPU kernels, see `persistent_kernel`.

Equal in value and gradient to the fast recurrence in bfloat16, but for the order of sums.
What surrounds the loops is XLA's, as there: the input's share of the gates before them, and
after them the weight gradient, as one product over all time steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, BFloat16, Float

from charjax.errors import InputError
from charjax.model.cells import CELLS
from charjax.model.matmul import dot_trailing, lookup
from charjax.model.recurrence.base import (
    Inputs,
    Layer,
    Outputs,
    Table,
    Weights,
    input_grad,
)
from charjax.model.recurrence.pallas_hopper import kernels as kernel
from charjax.model.recurrence.pallas_hopper.tiling import LANES, Spread, blocks, spreads
from charjax.types import LayerCarry

_CELLS = ("gru", "lstm", "rnn")
_HOPPER = "9.0"  # its compute capability: newer ones have other tensor core instructions


@dataclass(frozen=True)
class Machine:
    """What the kernels run on.

    Attributes:
      multiprocessors: of the GPU; that of an H100 or H200 by default.
      peers: see `Spread.peers`; 1 or 2.
      interpret: parameters of Pallas' interpret mode for GPUs, which tests use on a CPU.
    """

    multiprocessors: int = 132
    peers: int = 1
    interpret: Any = None


class _Residuals(NamedTuple):
    inputs: Inputs
    weights: Weights
    states: BFloat16[Array, "chunks slots lanes hidden"]
    kept: Float[Array, "chunks time ctas kept lanes units"]


def supports(layer: Layer) -> str:
    """Why the kernels cannot run a layer here; "" if they can."""
    devices = jax.devices()
    capability = str(getattr(devices[0], "compute_capability", "none"))
    if len(devices) != 1 or devices[0].platform != "gpu" or capability != _HOPPER:
        found = f"{len(devices)} x {devices[0].device_kind}"
        return f"needs one NVIDIA Hopper GPU (H100, H200), and there are {found}"
    if layer.cell not in _CELLS:
        return f"it was never checked with the cell {layer.cell}"
    if layer.dtype != "bfloat16":
        return f"needs config.model.dtype=bfloat16, not {layer.dtype}"
    if layer.batch % LANES:
        return f"needs a multiple of {LANES} sequences at once, and there are {layer.batch}"
    if spreads(layer.hidden, CELLS[layer.cell].gates, machine().multiprocessors) is None:
        return (
            f"the weights of a {layer.cell} of {layer.hidden} units do not fit on chip; take a "
            "multiple of 128 up to 1024"
        )
    return ""


def run(
    cell: str, dtype: DTypeLike, inputs: Inputs, weights: Weights, carry: LayerCarry
) -> tuple[Outputs, LayerCarry]:
    """One layer over a sequence; see `charjax.model.recurrence.api.run`."""
    del dtype  # bfloat16, see `supports`
    result: tuple[Outputs, LayerCarry] = recur(cell, machine(), inputs, weights, carry)
    return result


def machine() -> Machine:
    """The GPU of this process."""
    count = getattr(jax.devices()[0], "core_count", Machine.multiprocessors)
    return Machine(int(count))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def recur(
    cell: str, machine: Machine, inputs: Inputs, weights: Weights, carry: LayerCarry
) -> tuple[Outputs, LayerCarry]:
    """One layer over a sequence, with bfloat16 operands; all else is float32.

    Args:
      cell: a name in `CELLS`.
      machine: what the kernels run on.
      inputs: the input's share of the gates.
      weights: the recurrent parameters.
      carry: the state before the first character, [batch, hidden] each; the batch is a
        multiple of `LANES`.

    Returns:
      The outputs [hidden, time, batch], and the carry after the last character.

    Raises:
      InputError: the layer fits no such machine.
    """
    return _forward(cell, machine, inputs, weights, carry)[0]


def _spreads(cell: str, hidden: int, machine: Machine) -> tuple[Spread, Spread]:
    """How the products of a step are spread over the CTAs, forwards and backwards."""
    found = spreads(hidden, CELLS[cell].gates, machine.multiprocessors, machine.peers)
    if found is None:
        raise InputError(
            f"config.model.hidden={hidden}: config.model.recurrence=persistent keeps the weights "
            f"of a {cell} on chip, where they do not fit so; take a multiple of 128 up to 1024, "
            "or --config.model.recurrence=fast"
        )
    return found


def _forward(
    cell: str, machine: Machine, inputs: Inputs, weights: Weights, carry: LayerCarry
) -> tuple[tuple[Outputs, LayerCarry], _Residuals]:
    hidden, gates = weights.kernel.shape[0], CELLS[cell].gates
    way, _ = _spreads(cell, hidden, machine)
    bias = jnp.zeros(hidden, jnp.float32) if weights.bias is None else weights.bias
    by_cta = jnp.broadcast_to(bias.reshape(way.ctas, 1, way.units), (way.ctas, LANES, way.units))
    matrix = blocks(weights.kernel.reshape(hidden, gates, hidden), way)

    def run(chunk: tuple[Array, Array]) -> kernel.Forward:
        x, first = chunk
        return kernel.forward(cell, way, x, by_cta, first, matrix, machine.interpret)

    share = inputs.igates
    if isinstance(inputs, Table):
        share = lookup(inputs.igates, inputs.tokens)
    states, kept, last = _each(run, (_owned(share, way), _owned_rows(carry, way)))
    outputs = _columns(kept[:, :, :, 0])
    return (outputs, _rows(last)), _Residuals(inputs, weights, states, kept)


def _backward(
    cell: str, machine: Machine, res: _Residuals, grads: tuple[Outputs, LayerCarry]
) -> tuple[Inputs, Weights, LayerCarry]:
    d_outputs, d_last = grads
    hidden, dtype = res.weights.kernel.shape[0], jnp.bfloat16
    _, way = _spreads(cell, hidden, machine)
    matrix = blocks(res.weights.kernel.T[:, None], way)

    def run(chunk: tuple[Array, Array, Array]) -> kernel.Backward:
        kept, d_outputs, d_last = chunk
        return kernel.backward(
            cell, way, kept, d_outputs[:, :, 0], d_last, matrix, machine.interpret
        )

    owned = _owned(d_outputs, way), _owned_rows(d_last, way)
    d_u, own, d_carry = _each(run, (res.kept, *owned))
    d_u, before = _lanes_last(d_u), _lanes_last(res.states[:, :-1])
    own = _lanes_last(own) if CELLS[cell].reset_after else None
    d_kernel, d_bias = dot_trailing(before, d_u, dtype), None
    if res.weights.bias is not None:
        d_bias = jnp.sum(d_u[-hidden:], axis=(1, 2), dtype=jnp.float32)
    d_inputs = input_grad(res.inputs, d_u, own, dtype)
    return d_inputs, Weights(d_kernel, d_bias), _rows(d_carry)


recur.defvjp(_forward, _backward)


def _each(run: Any, chunks: Any) -> Any:
    """`run` on each chunk of `LANES` lanes, one after another: two at once would deadlock.

    Each kernel waits for all its CTAs to run, and the GPU has room for those of one alone.
    """
    if jax.tree.leaves(chunks)[0].shape[0] == 1:
        only = run(jax.tree.map(lambda a: a[0], chunks))
        return jax.tree.map(lambda a: a[None], only)
    return jax.lax.map(run, chunks)


def _owned(
    columns: Float[Array, "features time batch"], way: Spread
) -> Float[Array, "chunks time ctas gates lanes units"]:
    """What a step needs of the features of a CTA's units, side by side."""
    _, time, batch = columns.shape
    cut = columns.reshape(-1, way.ctas, way.units, time, batch // LANES, LANES)
    return cut.transpose(4, 3, 1, 0, 5, 2)


def _owned_rows(carry: LayerCarry, way: Spread) -> Float[Array, "chunks ctas states lanes units"]:
    cut = jnp.stack(carry).reshape(len(carry), -1, LANES, way.ctas, way.units)
    return cut.transpose(1, 3, 0, 2, 4)


def _columns(
    owned: Float[Array, "chunks time ctas lanes units"],
) -> Float[Array, "hidden time batch"]:
    _, time, *_ = owned.shape
    columns = owned.transpose(2, 4, 1, 0, 3)
    return columns.reshape(columns.shape[0] * columns.shape[1], time, -1)


def _rows(owned: Float[Array, "chunks ctas states lanes units"]) -> LayerCarry:
    chunks, ctas, states, lanes, units = owned.shape
    rows = owned.transpose(2, 0, 3, 1, 4).reshape(states, chunks * lanes, ctas * units)
    return tuple(rows)


def _lanes_last(
    stack: BFloat16[Array, "chunks time lanes features"],
) -> BFloat16[Array, "features time batch"]:
    _, time, _, features = stack.shape
    return stack.transpose(3, 1, 0, 2).reshape(features, time, -1)
