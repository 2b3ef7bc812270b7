"""A cell is its equations: forwards those of the papers, backwards their transpose."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.model.cells import CELLS
from tests.model import reference
from tests.model.small import distance, float64, normal

BATCH, HIDDEN = 3, 5
pytestmark = pytest.mark.parametrize("name", CELLS)


def inputs(name, seed, scale=1.0):
    cell = CELLS[name]
    x, u = scale * normal(seed, 2, cell.gates, BATCH, HIDDEN)
    return tuple(x), tuple(u), tuple(normal(seed + 1, cell.states, BATCH, HIDDEN))


@pytest.mark.parametrize("seed", range(5))
def test_forward_is_the_float64_cell(name, seed):
    x, u, carry = inputs(name, 10 * seed, scale=1 + seed)
    after, _ = CELLS[name].forward(x, u, carry)
    want = reference.STEPS[name](np.hstack(float64(x)), np.hstack(float64(u)), float64(carry))
    assert distance(after, want) < 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_backward_is_the_transpose_of_forward(name, seed):
    x, u, carry = inputs(name, 10 * seed)
    grad = tuple(normal(10 * seed + 2, len(carry), BATCH, HIDDEN))
    (_, saved), transpose = jax.vjp(CELLS[name].forward, x, u, carry)
    nothing = jax.tree.map(jnp.zeros_like, saved)  # no gradient comes by way of what is saved
    want_x, want_u, want_carry = transpose((grad, nothing))
    got = CELLS[name].backward(saved, grad)
    # Where the two shares of a gate are only ever added up, their gradient is one array.
    got_x = got.u if got.own is None else (*got.u[:-1], got.own)
    assert (got.own is not None) == CELLS[name].reset_after
    assert distance((got_x, got.u), (want_x, want_u)) < 1e-5
    for g, w in zip(got.carry, want_carry, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5)


def test_the_steps_are_elementwise_in_any_layout(name):
    at = inputs(name, 0)
    after, saved = CELLS[name].forward(*at)
    turned = CELLS[name].forward(*jax.tree.map(jnp.transpose, at))
    assert distance(jax.tree.map(jnp.transpose, turned), (after, saved)) == 0


def test_saturated_gates_stay_finite(name):
    x, u, carry = inputs(name, 0, scale=1e6)
    after, saved = CELLS[name].forward(x, u, carry)
    grads = CELLS[name].backward(saved, after)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after, saved, tuple(grads))))
