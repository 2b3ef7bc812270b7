"""Invariant 5: every implementation of the recurrence is the same mathematics.

To hold another implementation to it, add a row to `implementations.IMPLEMENTATIONS`.
"""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.model.cells import CELLS
from tests.model.recurrence.implementations import (
    CASES,
    DTYPES,
    IMPLEMENTATIONS,
    ROUNDING,
    float64_layer,
    random_cotangents,
    random_layer,
    random_resets,
    run,
    same_bits,
    sizes_of,
    supported,
    value_and_gradient,
)
from tests.model.small import distance, float64, like

LAYERS = [(cell, name) for name, found in IMPLEMENTATIONS.items() for cell in found.cells]
# A cell without operands to round is the same in bfloat16: a test of that finds no other bit.
WITH_DTYPES = [
    (dtype, cell, name)
    for dtype in DTYPES
    for cell, name in LAYERS
    if dtype == "float32" or CELLS[cell].has_recurrent_kernel
]
each_layer = pytest.mark.parametrize(("cell", "name"), LAYERS)
each_layer_and_dtype = pytest.mark.parametrize(("dtype", "cell", "name"), WITH_DTYPES)


@pytest.fixture(autouse=True)
def _patched(name, monkeypatch):
    for patch in IMPLEMENTATIONS[name].patches:
        monkeypatch.setattr(*patch)


@cache
def random_value_and_gradient(name, cell, kind, dtype, size, with_resets=False):
    """Of the layer of `random_layer`; computed once for the tests that compare it with others."""
    resets = random_resets(size) if with_resets else None
    return value_and_gradient(name, cell, dtype, *random_layer(cell, kind, size), resets=resets)


@each_layer
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("kind", ["projected", "table"])
def test_value_and_gradient_are_those_of_the_float64_cell(name, cell, kind, with_resets):
    supported(name, cell, "float32")
    size = sizes_of(name, kind, "float32", with_resets)[0]
    inputs, weights, carry = random_layer(cell, kind, size)
    resets = random_resets(size) if with_resets else None
    exact_layer = partial(float64_layer, cell, resets=resets)
    value, grads = random_value_and_gradient(name, cell, kind, "float32", size, with_resets)
    arguments = (inputs.igates, weights, carry)
    exact = float64(arguments)
    assert distance(value, exact_layer(exact[0], inputs.tokens, *exact[1:])) < 1e-6

    # The gradient along a random direction of each argument, against a central difference.
    direction_of_value = float64(random_cotangents(inputs, carry))
    for argument, grad in enumerate(float64(grads)):
        direction = float64(like(arguments[argument], 20 + argument))

        def loss(step, argument=argument, direction=direction):
            moved = list(exact)
            moved[argument] = jax.tree.map(lambda a, d: a + step * d, exact[argument], direction)
            out = exact_layer(moved[0], inputs.tokens, *moved[1:])
            return sum_of_products(out, direction_of_value)

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        assert sum_of_products(grad, direction) == pytest.approx(slope, rel=1e-5, abs=1e-5)


def sum_of_products(a, b):
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), a, b)))


@pytest.mark.parametrize(
    ("kind", "with_resets", "dtype", "cell", "name"),
    [
        (kind, with_resets, *layer)
        for kind, dtype, with_resets in CASES
        for layer in WITH_DTYPES
        if layer[0] == dtype and sizes_of(layer[2], kind, dtype, with_resets)
    ],
)
def test_value_and_gradient_are_those_of_scan(name, cell, kind, dtype, with_resets):
    for size in sizes_of(name, kind, dtype, with_resets):
        supported(name, cell, dtype, size)
        got = random_value_and_gradient(name, cell, kind, dtype, size, with_resets)
        want = random_value_and_gradient("scan", cell, kind, dtype, size, with_resets)
        assert distance(got, want) < 5 * ROUNDING[dtype]
        assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}


@each_layer
def test_no_value_and_no_gradient_flows_through_a_reset(name, cell):
    size = supported(name, cell, "float32").sizes[0]
    inputs, weights, carry = random_layer(cell, "table", size)
    rows = np.arange(size.batch) == 1
    resets = np.zeros((size.time, size.batch), bool)
    resets[0] = rows
    poisoned = tuple(np.where(rows[:, None], np.float32(np.nan), part) for part in carry)
    value, grads = value_and_gradient(name, cell, "float32", inputs, weights, poisoned, resets)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, grads)))
    for part in grads[2]:
        assert not part[1].any()
        assert part[0].all()


@each_layer
def test_packed_documents_are_those_run_one_by_one(name, cell):
    dtype, length = "float32", 2  # all of one length, so that one program computes them
    implementation = supported(name, cell, dtype)
    size = implementation.sizes[0]
    inputs, weights, carry = random_layer(cell, "table", size)
    resets = np.zeros((size.time, size.batch), bool)
    resets[::length] = True
    cotangents = random_cotangents(inputs, carry)
    (outputs, last), grads = value_and_gradient(name, cell, dtype, inputs, weights, carry, resets)
    zero = jax.tree.map(np.zeros_like, carry)
    parts, sums = [], jax.tree.map(np.zeros_like, grads)
    for start in range(0, size.time, length):
        at = slice(start, start + length)
        d_last = cotangents[1] if at.stop == size.time else zero
        document = inputs._replace(tokens=inputs.tokens[at])
        value, document_grads = value_and_gradient(
            name, cell, dtype, document, weights, zero, cotangents=(cotangents[0][:, at], d_last)
        )
        parts.append(value[0])
        sums = jax.tree.map(np.add, sums, document_grads)
    got, want = (outputs, last), (np.concatenate(parts, axis=1), value[1])
    assert same_bits(got, want) if implementation.batch_invariant else distance(got, want) < 1e-6
    assert distance(grads[:2], sums[:2]) < ROUNDING[dtype]
    assert not any(part.any() for part in grads[2])


@each_layer
def test_bfloat16_rounds_operands_and_nothing_more(name, cell):
    size = supported(name, cell, "bfloat16").sizes[0]
    got = random_value_and_gradient(name, cell, "projected", "bfloat16", size)
    # bfloat16 keeps 8 bits: each rounding is off by up to 0.4 %, and a few add up.
    exact = random_value_and_gradient(name, cell, "projected", "float32", size)
    off = distance(got, exact)
    assert off < 0.05
    assert (off > 0) == CELLS[cell].has_recurrent_kernel  # the others have nothing to round


@each_layer_and_dtype
def test_chunks_with_carry_are_the_whole(name, cell, dtype):
    implementation = supported(name, cell, dtype)
    inputs, weights, carry = random_layer(cell, "table", implementation.sizes[0])
    whole, last = run(name, cell, dtype, inputs, weights, carry)
    chunks = []
    for steps in (slice(0, 3), slice(3, None)):
        chunk = inputs._replace(tokens=inputs.tokens[steps])
        outputs, carry = run(name, cell, dtype, chunk, weights, carry)
        chunks.append(outputs)
    got, want = (np.concatenate(chunks, axis=1), carry), (whole, last)
    assert same_bits(got, want) if implementation.batch_invariant else distance(got, want) < 1e-6


def rows_of(rows, outputs, *carries):
    """Some sequences of outputs and of carries."""
    return outputs[..., rows], *(tuple(part[rows] for part in carry) for carry in carries)


@each_layer
def test_a_sequence_does_not_depend_on_the_others_of_its_batch(name, cell):
    size = supported(name, cell, "float32").sizes[0]
    inputs, weights, carry = random_layer(cell, "table", size)
    kept = np.arange(size.batch) == 1
    inputs = inputs._replace(tokens=np.where(kept, inputs.tokens, 0))
    carry = tuple(np.where(kept[:, None], part, 0) for part in carry)
    changed = value_and_gradient(name, cell, "float32", inputs, weights, carry)
    whole = random_value_and_gradient(name, cell, "table", "float32", size)
    got, want = (rows_of(kept, *value, grads[2]) for value, grads in (changed, whole))
    assert same_bits(got, want)
    assert not same_bits(changed, whole)


@pytest.mark.parametrize(
    ("dtype", "cell", "name"), [at for at in WITH_DTYPES if IMPLEMENTATIONS[at[2]].batch_invariant]
)
def test_a_sequence_has_the_same_bits_in_any_batch(name, cell, dtype):
    size = supported(name, cell, dtype).sizes[-1]
    inputs, weights, carry = random_layer(cell, "table", size)
    cotangents = random_cotangents(inputs, carry)
    (outputs, last), (_, _, d_carry) = random_value_and_gradient(name, cell, "table", dtype, size)
    for rows in (slice(0, 1), slice(15, 17), slice(3, 37)):
        some = inputs._replace(tokens=inputs.tokens[:, rows])
        _, carry_of_some = rows_of(rows, outputs, carry)
        value, grads = value_and_gradient(
            name, cell, dtype, some, weights, carry_of_some, cotangents=rows_of(rows, *cotangents)
        )
        assert same_bits((*value, grads[2]), rows_of(rows, outputs, last, d_carry))


@each_layer
def test_saving_residuals_changes_no_value(name, cell):
    implementation = supported(name, cell, "float32")
    size = implementation.sizes[0]
    saved, _ = random_value_and_gradient(name, cell, "table", "float32", size)
    got = run(name, cell, "float32", *random_layer(cell, "table", size))
    assert same_bits(got, saved) if implementation.batch_invariant else distance(got, saved) < 1e-6
