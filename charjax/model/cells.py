"""The cells: one step of GRU, LSTM and vanilla RNN, forwards and backwards.

A step receives `x`, the input's share of the gates' pre-activations (bias
included), and `u`, the state's share: one array a gate, in the order that the
cell's docstring names. How they come about is the recurrence's business, and so
is how they lie in memory: a cell is elementwise, on arrays of any one shape.

`backward` is the hand-derived transpose of `forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# One array a gate.
Gates: TypeAlias = tuple[Float[Array, "*units"], ...]
# One layer's carry, whichever way it lies: (h,) or (h, c).
CellCarry: TypeAlias = tuple[Float[Array, "*units"], ...]
# All that backward needs, what it reads of the carry before the step included.
Saved: TypeAlias = tuple[Float[Array, "*units"], ...]


class CellGrads(NamedTuple):
    """Gradients of one step, float32.

    Attributes:
      u: of the state's share. The input's share has the same, but for the last gate of
        a cell with `reset_after`.
      own: of the last gate's input share where a cell has `reset_after`, else None.
      carry: of the carry before the step, but for what flows through `u`.
    """

    u: Gates
    own: Float[Array, "*units"] | None
    carry: CellCarry


class Cell(NamedTuple):
    """A recurrent cell as data.

    Attributes:
      gates: how many blocks of `hidden` the kernels have.
      states: how many arrays the carry has; the first is the output.
      two_shares: whether the last gate is more than the sum of its shares, so that `u`
        has a bias, and `x` a gradient, of its own there.
      forward: (x, u, carry) -> (next carry, saved).
      backward: (saved, gradient of the next carry) -> gradients.
    """

    gates: int
    states: int
    reset_after: bool
    forward: Callable[[Gates, Gates, CellCarry], tuple[CellCarry, Saved]]
    backward: Callable[[Saved, CellCarry], CellGrads]


def gru_forward(x: Gates, u: Gates, carry: CellCarry) -> tuple[CellCarry, Saved]:
    """Gated recurrent unit, reset after the product; gates: reset, update, candidate.

    Cho et al. 2014 (arXiv 1406.1078) in the variant of cuDNN and Keras
    (`reset_after=True`), whose recurrent product does not wait for the reset gate.
    """
    (h,), (x_r, x_z, x_n), (u_r, u_z, u_n) = carry, x, u
    r, z = jax.nn.sigmoid(x_r + u_r), jax.nn.sigmoid(x_z + u_z)
    n = jnp.tanh(x_n + r * u_n)
    return (n + z * (h - n),), (r, z, n, u_n, h)


def gru_backward(saved: Saved, grad: CellCarry) -> CellGrads:
    """The transpose of `gru_forward`."""
    (r, z, n, u_n, h), (dh,) = saved, grad
    dn = dh * (1 - z) * (1 - n * n)
    dz = dh * (h - n) * z * (1 - z)
    dr = dn * u_n * r * (1 - r)
    return CellGrads(u=(dr, dz, dn * r), own=dn, carry=(dh * z,))


def lstm_forward(x: Gates, u: Gates, carry: CellCarry) -> tuple[CellCarry, Saved]:
    """Long short-term memory; gates: input, forget, candidate, output; carry (h, c).

    Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000. Saves what
    the gradients are multiplied by, not the gates: XLA on a CPU is slow to compute and
    join four columns as long as their formulas.
    """
    _, before = carry
    a_i, a_f, a_g, a_o = (x_gate + u_gate for x_gate, u_gate in zip(x, u, strict=True))
    i, f, o = jax.nn.sigmoid(a_i), jax.nn.sigmoid(a_f), jax.nn.sigmoid(a_o)
    g = jnp.tanh(a_g)
    c = f * before + i * g
    tanh_c = jnp.tanh(c)
    by_dc = g * i * (1 - i), before * f * (1 - f), i * (1 - g * g)
    by_dh = tanh_c * o * (1 - o), o * (1 - tanh_c * tanh_c)
    return (o * tanh_c, c), (*by_dc, *by_dh, f)


def lstm_backward(saved: Saved, grad: CellCarry) -> CellGrads:
    """The transpose of `lstm_forward`."""
    (i_by_dc, f_by_dc, g_by_dc, o_by_dh, dc_by_dh, f), (dh, dc) = saved, grad
    dc = dc + dh * dc_by_dh
    du = (dc * i_by_dc, dc * f_by_dc, dc * g_by_dc, dh * o_by_dh)
    return CellGrads(u=du, own=None, carry=(jnp.zeros_like(dh), dc * f))


def rnn_forward(x: Gates, u: Gates, carry: CellCarry) -> tuple[CellCarry, Saved]:
    """Vanilla recurrent network (Elman 1990) with tanh; one gate."""
    (x_h,), (u_h,) = x, u
    h = jnp.tanh(x_h + u_h)
    return (h,), (h,)


def rnn_backward(saved: Saved, grad: CellCarry) -> CellGrads:
    """The transpose of `rnn_forward`."""
    (h,), (dh,) = saved, grad
    return CellGrads(u=(dh * (1 - h * h),), own=None, carry=(jnp.zeros_like(dh),))


CELLS = {
    "gru": Cell(3, 1, True, gru_forward, gru_backward),
    "lstm": Cell(4, 2, False, lstm_forward, lstm_backward),
    "rnn": Cell(1, 1, False, rnn_forward, rnn_backward),
}
