"""Cells: forward equals the float64 equations, backward is its vector-Jacobian product."""

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


def random_inputs(name, seed, scale=1.0):
    """Input gates, hidden gates and carry."""
    cell = CELLS[name]
    igates, hgates = scale * normal(seed, 2, cell.gates, BATCH, HIDDEN)
    if not cell.has_recurrent_kernel:
        hgates = hgates[..., :0]
    return tuple(igates), tuple(hgates), tuple(normal(seed + 1, cell.states, BATCH, HIDDEN))


@pytest.mark.parametrize("seed", range(5))
def test_forward_equals_the_float64_cell(name, seed):
    igates, hgates, carry = random_inputs(name, 10 * seed, scale=1 + seed)
    got, _ = CELLS[name].forward(igates, hgates, carry)
    joined = np.hstack(float64(igates)), np.hstack(float64(hgates))
    assert distance(got, reference.STEPS[name](*joined, float64(carry))) < 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_backward_is_the_vjp_of_forward(name, seed):
    inputs = random_inputs(name, 10 * seed)
    d_carry = tuple(normal(10 * seed + 2, CELLS[name].states, BATCH, HIDDEN))
    (_, residuals), vjp = jax.vjp(CELLS[name].forward, *inputs)
    d_residuals = jax.tree.map(jnp.zeros_like, residuals)
    want_igates, want_hgates, want_carry = vjp((d_carry, d_residuals))
    got = CELLS[name].backward(residuals, d_carry)
    assert (got.candidate is not None) == CELLS[name].reset_after
    got_igates = got.hgates if got.candidate is None else (*got.hgates[:-1], got.candidate)
    assert distance(got_igates, want_igates) < 1e-5
    if CELLS[name].has_recurrent_kernel:
        assert distance(got.hgates, want_hgates) < 1e-5
    for g, w in zip(got.carry, want_carry, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5)


def test_saturated_gates_stay_finite(name):
    carry, residuals = CELLS[name].forward(*random_inputs(name, 0, scale=1e6))
    grads = CELLS[name].backward(residuals, carry)
    leaves = jax.tree.leaves((carry, residuals, tuple(grads)))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
