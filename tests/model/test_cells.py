"""A cell is its equations: forwards those of the papers, backwards their transpose."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from small import distance, float64, normal

from charjax.model.cells import CELLS

BATCH, HIDDEN = 3, 5
pytestmark = pytest.mark.parametrize("name", CELLS)


def inputs(name, seed, scale=1.0):
    cell = CELLS[name]
    x, u = scale * normal(seed, 2, BATCH, cell.gates * HIDDEN)
    return x, u, tuple(normal(seed + 1, cell.states, BATCH, HIDDEN))


@pytest.mark.parametrize("seed", range(5))
def test_forward_is_the_float64_cell(name, seed):
    x, u, carry = inputs(name, 10 * seed, scale=1 + seed)
    after, _ = CELLS[name].forward(x, u, carry)
    assert distance(after, reference.STEPS[name](*float64((x, u, carry)))) < 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_backward_is_the_transpose_of_forward(name, seed):
    x, u, carry = inputs(name, 10 * seed)
    grad = tuple(normal(10 * seed + 2, len(carry), BATCH, HIDDEN))
    (_, saved), transpose = jax.vjp(CELLS[name].forward, x, u, carry)
    nothing = jax.tree.map(jnp.zeros_like, saved)  # no gradient comes by way of what is saved
    want_x, want_u, want_carry = transpose((grad, nothing))
    got = CELLS[name].backward(saved, carry, grad)
    want = (want_x, want_u)
    assert distance((np.concatenate(got.x, 1), np.concatenate(got.u, 1)), want) < 1e-5
    for g, w in zip(got.carry, want_carry, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5)


def test_equal_gradients_of_both_shares_are_one_array(name):
    # The recurrence stores such a gradient once, and tells it by its identity.
    x, u, carry = inputs(name, 0)
    _, saved = CELLS[name].forward(x, u, carry)
    got = CELLS[name].backward(saved, carry, carry)
    assert len(got.x) == len(got.u) == CELLS[name].gates
    for g_x, g_u in zip(got.x, got.u, strict=True):
        assert (g_x is g_u) == np.array_equal(g_x, g_u)


def test_saturated_gates_stay_finite(name):
    x, u, carry = inputs(name, 0, scale=1e6)
    after, saved = CELLS[name].forward(x, u, carry)
    grads = CELLS[name].backward(saved, carry, after)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after, saved, tuple(grads))))
