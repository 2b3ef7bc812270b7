"""The cells: one step of GRU, LSTM and vanilla RNN, forwards and backwards.

A step receives `x`, the input's share of the gates' pre-activations (bias
included), and `u`, the state's share. Both are [batch, gates * hidden] with
the gates side by side in the order that the cell's docstring names. How
`x` and `u` come about is the recurrence's business.

`backward` is the hand-derived transpose of `forward`. It returns gradients gate
by gate, so that a gate whose two shares have the same gradient is stored once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from charjax.types import LayerCarry

Gates: TypeAlias = Float[Array, "batch gates"]
# What backward needs beside the carry before the step; float32 [batch, hidden] each.
Saved: TypeAlias = tuple[Float[Array, "batch hidden"], ...]


class StepGrads(NamedTuple):
    """Gradients of one step, each float32 [batch, hidden].

    Attributes:
      x: of the input's share, one entry a gate.
      u: of the state's share, one entry a gate; an entry that `is` the one of `x`
        is the same gradient.
      carry: of the carry before the step, but for what flows through `u`.
    """

    x: tuple[Array, ...]
    u: tuple[Array, ...]
    carry: LayerCarry


class Cell(NamedTuple):
    """A recurrent cell as data.

    Attributes:
      gates: how many blocks of `hidden` columns the kernels have.
      states: how many arrays one layer's carry has; the first is the output.
      recurrent_bias: whether the last gate's `u` has a bias of its own.
      forward: (x, u, carry) -> (next carry, saved).
      backward: (saved, carry before, gradient of next carry) -> gradients.
    """

    gates: int
    states: int
    recurrent_bias: bool
    forward: Callable[[Gates, Gates, LayerCarry], tuple[LayerCarry, Saved]]
    backward: Callable[[Saved, LayerCarry, LayerCarry], StepGrads]


def gru_forward(x: Gates, u: Gates, carry: LayerCarry) -> tuple[LayerCarry, Saved]:
    """Gated recurrent unit, reset after the product; gates: reset, update, candidate.

    Cho et al. 2014 (arXiv 1406.1078) in the variant of cuDNN and Keras
    (`reset_after=True`), whose recurrent product does not wait for the reset gate.
    """
    (h,) = carry
    x_r, x_z, x_n = jnp.split(x, 3, axis=-1)
    u_r, u_z, u_n = jnp.split(u, 3, axis=-1)
    r, z = jax.nn.sigmoid(x_r + u_r), jax.nn.sigmoid(x_z + u_z)
    n = jnp.tanh(x_n + r * u_n)
    return (n + z * (h - n),), (r, z, n, u_n)


def gru_backward(saved: Saved, carry: LayerCarry, grad: LayerCarry) -> StepGrads:
    """The transpose of `gru_forward`."""
    (r, z, n, u_n), (h,), (dh,) = saved, carry, grad
    dn = dh * (1 - z) * (1 - n * n)
    dz = dh * (h - n) * z * (1 - z)
    dr = dn * u_n * r * (1 - r)
    return StepGrads(x=(dr, dz, dn), u=(dr, dz, dn * r), carry=(dh * z,))


def lstm_forward(x: Gates, u: Gates, carry: LayerCarry) -> tuple[LayerCarry, Saved]:
    """Long short-term memory; gates: input, forget, candidate, output; carry (h, c).

    Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000.
    """
    _, c = carry
    a_i, a_f, a_g, a_o = jnp.split(x + u, 4, axis=-1)
    i, f, o = jax.nn.sigmoid(a_i), jax.nn.sigmoid(a_f), jax.nn.sigmoid(a_o)
    g = jnp.tanh(a_g)
    c = f * c + i * g
    return (o * jnp.tanh(c), c), (i, f, g, o)


def lstm_backward(saved: Saved, carry: LayerCarry, grad: LayerCarry) -> StepGrads:
    """The transpose of `lstm_forward`."""
    (i, f, g, o), (_, c), (dh, dc) = saved, carry, grad
    tanh_c = jnp.tanh(f * c + i * g)
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    da = (
        dc * g * i * (1 - i),
        dc * c * f * (1 - f),
        dc * i * (1 - g * g),
        dh * tanh_c * o * (1 - o),
    )
    return StepGrads(x=da, u=da, carry=(jnp.zeros_like(dh), dc * f))


def rnn_forward(x: Gates, u: Gates, carry: LayerCarry) -> tuple[LayerCarry, Saved]:
    """Vanilla recurrent network (Elman 1990) with tanh; one gate."""
    h = jnp.tanh(x + u)
    return (h,), (h,)


def rnn_backward(saved: Saved, carry: LayerCarry, grad: LayerCarry) -> StepGrads:
    """The transpose of `rnn_forward`."""
    (h,), (dh,) = saved, grad
    da = (dh * (1 - h * h),)
    return StepGrads(x=da, u=da, carry=(jnp.zeros_like(dh),))


CELLS = {
    "gru": Cell(3, 1, True, gru_forward, gru_backward),
    "lstm": Cell(4, 2, False, lstm_forward, lstm_backward),
    "rnn": Cell(1, 1, False, rnn_forward, rnn_backward),
}
