"""Law 5: the fast recurrence is the scanned one, in value and gradient; both are the cell."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.config import ModelConfig
from charjax.model.cells import CELLS
from charjax.model.network import CharRNN
from charjax.model.recurrence import xla
from charjax.model.recurrence.base import Projected, Table, Weights
from charjax.model.recurrence.xla import run as recur
from tests.model import reference
from tests.model.small import (
    UNOPTIMIZED,
    carry_of,
    distance,
    float64,
    like,
    normal,
    params_of,
    tokens_of,
)

VOCAB, BATCH, TIME, HIDDEN = 7, 3, 6, 5


def layer_inputs(cell, kind):
    gates = CELLS[cell].gates * HIDDEN
    bias = normal(2, HIDDEN) if CELLS[cell].reset_after else None
    weights = Weights(normal(1, HIDDEN, gates) / 2, bias)
    carry = tuple(normal(3, CELLS[cell].states, BATCH, HIDDEN))
    if kind is Table:
        return Table(normal(0, gates, VOCAB), tokens_of(VOCAB, BATCH, TIME).T), weights, carry
    return Projected(normal(0, gates, TIME, BATCH)), weights, carry


def in_float64(cell, kind, columns, tokens, weights, carry):
    xs = np.moveaxis(columns[:, tokens] if kind is Table else columns, 0, -1)
    outputs, last = reference.layer(cell, xs, *weights, carry)
    return np.moveaxis(outputs, -1, 0), last


def in_blocks(monkeypatch, count):
    """Has the units, however few, computed in so many blocks, not all of one size."""
    monkeypatch.setattr(xla, "_BLOCKED_SIZES", range(1, 1024))
    monkeypatch.setattr(xla, "_NUM_BLOCKS", count)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("kind", [Projected, Table])
@pytest.mark.parametrize("cell", CELLS)
def test_value_and_gradient_are_those_of_the_float64_layer(monkeypatch, cell, kind, blocks):
    in_blocks(monkeypatch, blocks)
    source, weights, carry = layer_inputs(cell, kind)
    tokens = source.tokens if kind is Table else None

    def layer(columns, weights, carry):
        source = Table(columns, tokens) if kind is Table else Projected(columns)
        return recur(cell, jnp.float32, source, weights, carry)

    at = (source.igates, weights, carry)
    outputs, transpose = jax.vjp(layer, *at)
    wide = float64(at)
    assert distance(outputs, in_float64(cell, kind, wide[0], tokens, *wide[1:])) < 1e-6

    # The gradient along a random direction in each argument, against a central difference.
    weighting = like(outputs, 4)
    grads = float64(transpose(weighting))
    weighting = float64(weighting)
    for argument in range(3):
        towards = float64(like(at[argument], 20 + argument))

        def loss(step, argument=argument, towards=towards):
            moved = list(wide)
            moved[argument] = jax.tree.map(lambda a, d: a + step * d, wide[argument], towards)
            out = in_float64(cell, kind, moved[0], tokens, *moved[1:])
            return sum(jax.tree.leaves(jax.tree.map(lambda a, w: (a * w).sum(), out, weighting)))

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        along = jax.tree.map(lambda g, d: (g * d).sum(), grads[argument], towards)
        assert sum(jax.tree.leaves(along)) == pytest.approx(slope, rel=1e-5, abs=1e-5)


@partial(jax.jit, static_argnums=0, compiler_options=UNOPTIMIZED)
def value_and_grads(config, params, carry, tokens, keys):
    def loss(params, carry):
        out = CharRNN(config, VOCAB).run(params, tokens, carry, keys)
        weighted = jax.tree.map(jnp.vdot, out, like(out, 4))
        return sum(jax.tree.leaves(weighted)), out

    (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, carry)
    return out, grads


def run(config, **changes):
    """Logits and carry, and the gradients of the parameters and of the first carry."""
    at = (params_of(config, VOCAB), carry_of(config, BATCH), tokens_of(VOCAB, BATCH, TIME))
    keys = jax.random.split(jax.random.key(0), BATCH)
    return value_and_grads(replace(config, **changes), *at, keys)


DROPOUT = {"dropout": 0.3, "dropout_in": 0.2, "dropout_between": 0.4}


@pytest.mark.parametrize(
    ("layers", "embed", "dropout"), [(2, 4, {}), (1, 0, DROPOUT), (3, 4, DROPOUT)]
)
@pytest.mark.parametrize("recurrence", ["fast", "xla"])
@pytest.mark.parametrize("cell", CELLS)
def test_fast_is_scan(cell, recurrence, layers, embed, dropout):
    config = ModelConfig(cell=cell, hidden=HIDDEN, layers=layers, embed=embed, **dropout)
    assert distance(run(config, recurrence=recurrence), run(config, recurrence="scan")) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_blocks_of_units_are_the_whole(monkeypatch, cell, dtype):
    config = ModelConfig(cell=cell, hidden=7, layers=2, embed=4, dtype=dtype, recurrence="xla")
    whole = run(config)
    in_blocks(monkeypatch, 3)
    value_and_grads.clear_cache()  # what is patched is no argument
    blocks = run(config)
    value_and_grads.clear_cache()
    # In bfloat16 a difference in the last bit may fall on either side of a rounding.
    assert distance(blocks, whole) < {"float32": 1e-6, "bfloat16": 0.02}[dtype]


@pytest.mark.parametrize(("hidden", "count"), [(255, 1), (256, 8), (257, 8), (1000, 8), (1024, 1)])
def test_blocks_are_all_units_in_order(hidden, count):
    blocks = xla._blocks(hidden)
    units = [unit for block in blocks for unit in range(hidden)[block]]
    assert units == list(range(hidden))
    assert len(blocks) == count
    sizes = [len(range(hidden)[block]) for block in blocks]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("cell", CELLS)
def test_in_bfloat16_fast_and_scan_are_close_to_each_other_and_to_float32(cell):
    config = ModelConfig(cell=cell, hidden=HIDDEN, layers=2, embed=4)
    exact, fast, scan = (
        run(config),
        *(run(config, dtype="bfloat16", recurrence=r) for r in ("fast", "scan")),
    )
    # bfloat16 keeps 8 bits: each rounding is off by up to 0.4 %, and a few add up.
    assert 0 < distance(fast, exact) < 0.05  # not zero, or nothing ran in bfloat16
    assert 0 < distance(scan, exact) < 0.05
    assert distance(fast, scan) < 0.05
    assert {leaf.dtype for leaf in jax.tree.leaves((fast, scan))} == {jnp.dtype(jnp.float32)}


def test_a_gradient_through_the_last_carry_reaches_the_first():
    # Truncated backpropagation stops gradients at a chunk's border; the recurrence must not.
    source, weights, carry = layer_inputs("lstm", Table)

    def last(carry):
        return sum(jnp.sum(c) for c in recur("lstm", jnp.float32, source, weights, carry)[1])

    assert all(jnp.abs(g).min() > 0 for g in jax.grad(last)(carry))
