"""GRU, LSTM, vanilla RNN, minGRU and minLSTM cells: one time step, forward and backward.

The pre-activations of a cell's gates have two terms: the input gates (`igates`, the input
times its kernel, plus a bias) and the hidden gates (`hgates`, the previous state times the
recurrent kernel). Both are tuples of one array per gate, in the order that `forward`'s
docstring names. Cells are elementwise: all arrays of a call have one shape, which may be
batch-major, feature-major or a block of the units.

`backward` is the vector-Jacobian product of `forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from charjax.config import CELL_SIZES

# One array per gate.
Gates: TypeAlias = tuple[Float[Array, "*units"], ...]
# (h, c) for LSTM and mogrifier, (h,) for the others.
CellCarry: TypeAlias = tuple[Float[Array, "*units"], ...]
# (a, b) of a state that is linear in the one before, h' = a * h + b.
Coefficients: TypeAlias = tuple[Float[Array, "*units"], Float[Array, "*units"]]
# What `forward` saves for `backward`.
Residuals: TypeAlias = tuple[Float[Array, "*units"], ...]


class CellGrads(NamedTuple):
    """Gradients of one time step, float32.

    Attributes:
      hgates: of the hidden gates. Those of the input gates are the same, except for the
        candidate of a cell with `reset_after`. Of a cell without a recurrent kernel: those of
        the input gates.
      candidate: of the candidate's input gate, for a cell with `reset_after`; else None.
      carry: of the carry before the step, without the part that flows through `hgates`.
    """

    hgates: Gates
    candidate: Float[Array, "*units"] | None
    carry: CellCarry


class Cell(NamedTuple):
    """A recurrent cell.

    Attributes:
      gates, states, reset_after, has_recurrent_kernel, rounds: see `charjax.config.CellSizes`.
      forward: (igates, hgates, carry) -> (next carry, residuals).
      backward: (residuals, gradient of the next carry) -> gradients.
      coefficients: igates -> (a, b) of a cell without a recurrent kernel, whose next state is
        a * h + b and whose hidden gates are empty; None for a cell with a recurrent kernel.
    """

    gates: int
    states: int
    reset_after: bool
    has_recurrent_kernel: bool
    rounds: int
    forward: Callable[[Gates, Gates, CellCarry], tuple[CellCarry, Residuals]]
    backward: Callable[[Residuals, CellCarry], CellGrads]
    coefficients: Callable[[Gates], Coefficients] | None = None


def gru_forward(igates: Gates, hgates: Gates, carry: CellCarry) -> tuple[CellCarry, Residuals]:
    """Gated recurrent unit with `reset_after`; gates: reset, update, candidate.

        r = sigmoid(x_r + h_r),  z = sigmoid(x_z + h_z),  n = tanh(x_n + r * h_n)
        h' = (1 - z) * n + z * h

    Cho et al. 2014 (arXiv:1406.1078) in the variant of cuDNN and Keras (`reset_after=True`),
    whose recurrent matmul does not wait for the reset gate.
    """
    (h,), (x_r, x_z, x_n), (h_r, h_z, h_n) = carry, igates, hgates
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * h_n)
    return (n + z * (h - n),), (r, z, n, h_n, h)


def gru_backward(residuals: Residuals, d_carry: CellCarry) -> CellGrads:
    """The vector-Jacobian product of `gru_forward`."""
    (r, z, n, h_n, h), (dh,) = residuals, d_carry
    dn = dh * (1 - z) * (1 - n * n)
    dz = dh * (h - n) * z * (1 - z)
    dr = dn * h_n * r * (1 - r)
    return CellGrads(hgates=(dr, dz, dn * r), candidate=dn, carry=(dh * z,))


def lstm_forward(igates: Gates, hgates: Gates, carry: CellCarry) -> tuple[CellCarry, Residuals]:
    """Long short-term memory; gates: input, forget, candidate, output; carry (h, c).

        i, f, o = sigmoid(x_i + h_i), sigmoid(x_f + h_f), sigmoid(x_o + h_o)
        g = tanh(x_g + h_g)
        c' = f * c + i * g,  h' = o * tanh(c')

    Hochreiter and Schmidhuber 1997 with the forget gate of Gers, Schmidhuber and Cummins
    2000. The residuals are partial derivatives rather than the gates, so that `backward` is
    one multiplication per gate: XLA:CPU is slow at concatenating long elementwise formulas.
    """
    _, c_before = carry
    a_i, a_f, a_g, a_o = (x + h for x, h in zip(igates, hgates, strict=True))
    i, f, o = jax.nn.sigmoid(a_i), jax.nn.sigmoid(a_f), jax.nn.sigmoid(a_o)
    g = jnp.tanh(a_g)
    c = f * c_before + i * g
    tanh_c = jnp.tanh(c)
    dc_di, dc_df, dc_dg = g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g)
    dh_do, dh_dc = tanh_c * o * (1 - o), o * (1 - tanh_c * tanh_c)
    return (o * tanh_c, c), (dc_di, dc_df, dc_dg, dh_do, dh_dc, f)


def lstm_backward(residuals: Residuals, d_carry: CellCarry) -> CellGrads:
    """The vector-Jacobian product of `lstm_forward`."""
    (dc_di, dc_df, dc_dg, dh_do, dh_dc, f), (dh, dc) = residuals, d_carry
    dc = dc + dh * dh_dc
    d_hgates = (dc * dc_di, dc * dc_df, dc * dc_dg, dh * dh_do)
    return CellGrads(hgates=d_hgates, candidate=None, carry=(jnp.zeros_like(dh), dc * f))


def rnn_forward(igates: Gates, hgates: Gates, carry: CellCarry) -> tuple[CellCarry, Residuals]:
    """Vanilla recurrent network with tanh (Elman 1990); one gate: h' = tanh(x_h + h_h)."""
    (x_h,), (h_h,) = igates, hgates
    h = jnp.tanh(x_h + h_h)
    return (h,), (h,)


def rnn_backward(residuals: Residuals, d_carry: CellCarry) -> CellGrads:
    """The vector-Jacobian product of `rnn_forward`."""
    (h,), (dh,) = residuals, d_carry
    return CellGrads(hgates=(dh * (1 - h * h),), candidate=None, carry=(jnp.zeros_like(dh),))


def mingru_coefficients(igates: Gates) -> Coefficients:
    """minGRU, whose gates do not read the state; gates: update, candidate.

        z = sigmoid(x_z),  h' = (1 - z) * h + z * x_n

    Feng et al. 2024 (arXiv:2410.01201), the variant of their appendix that does not compute in
    log space. So the candidate is linear, without the map to positive numbers. Nothing
    overflows: 1 - z is in [0, 1], and products of such numbers only shrink.
    """
    x_z, x_n = igates
    return jax.nn.sigmoid(-x_z), jax.nn.sigmoid(x_z) * x_n


def minlstm_coefficients(igates: Gates) -> Coefficients:
    """minLSTM, whose gates do not read the state; gates: input, forget, candidate.

        i, f = sigmoid(x_i), sigmoid(x_f),  h' = f / (f + i) * h + i / (f + i) * x_g

    Feng et al. 2024, in the variant of `mingru_coefficients`. f / (f + i) is computed as
    sigmoid(log f - log i), which is finite where both gates are zero.
    """
    x_i, x_f, x_g = igates
    log_ratio = jax.nn.softplus(-x_i) - jax.nn.softplus(-x_f)
    return jax.nn.sigmoid(log_ratio), jax.nn.sigmoid(-log_ratio) * x_g


def _linear_cell(name: str, coefficients: Callable[[Gates], Coefficients]) -> Cell:
    """The cell whose next state is a * h + b, with these coefficients."""

    def forward(
        igates: Gates, hgates: tuple[Array, ...], carry: CellCarry
    ) -> tuple[CellCarry, Residuals]:
        del hgates  # empty
        (a, b), (h,) = coefficients(igates), carry
        return (a * h + b,), (*igates, h)

    def backward(residuals: Residuals, d_carry: CellCarry) -> CellGrads:
        (*igates, h), (dh,) = residuals, d_carry
        (a, _), vjp = jax.vjp(coefficients, tuple(igates))
        (d_igates,) = vjp((dh * h, dh))
        return CellGrads(hgates=d_igates, candidate=None, carry=(dh * a,))

    return Cell(*CELL_SIZES[name], forward, backward, coefficients)


CELLS = {
    "gru": Cell(*CELL_SIZES["gru"], gru_forward, gru_backward),
    "lstm": Cell(*CELL_SIZES["lstm"], lstm_forward, lstm_backward),
    "rnn": Cell(*CELL_SIZES["rnn"], rnn_forward, rnn_backward),
    "mingru": _linear_cell("mingru", mingru_coefficients),
    "minlstm": _linear_cell("minlstm", minlstm_coefficients),
    "mogrifier": Cell(*CELL_SIZES["mogrifier"], lstm_forward, lstm_backward),
}
