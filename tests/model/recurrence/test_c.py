"""What only the C implementation has: sums over positions, its exp and tanh, checked calls."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charjax.model.cells import CELLS
from charjax.model.recurrence.base import Inputs, Operands, Weights
from charjax.model.recurrence.c import library, ops
from tests.model import reference
from tests.model.recurrence.c_library import LIBRARY, needs_c, skip_without
from tests.model.recurrence.implementations import (
    DTYPES,
    VOCAB,
    Size,
    random_cotangents,
    random_layer,
    same_bits,
)
from tests.model.small import distance, normal, tokens_of

pytestmark = needs_c


def run(cell, *layer):
    return ops.run(cell, "float32", Operands(*layer))


def tiles(x):
    """[features, time, batch] as tiles of src/sequence.h, padded with zeros."""
    width = LIBRARY.vector_width
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % width)))
    x = x.reshape(*x.shape[:2], -1, width).transpose(1, 2, 0, 3)
    if x.dtype == jnp.float32:
        return x
    pairs = x.reshape(*x.shape[:2], -1, 2, width)  # of adjacent features, in words of 32 bits
    return pairs.swapaxes(3, 4).reshape(x.shape)


# [rows, columns, time, batch]: around panels, tiles, bf16 pairs and blocks of the K loop.
MATRICES = [(2, 2, 1, 1), (24, 16, 64, 16), (26, 34, 19, 27), (2, 130, 79, 13)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "time", "batch"), MATRICES)
def test_sums_over_all_positions_are_those_of_float64(rows, columns, time, batch, dtype):
    skip_without(dtype)
    a, b = (normal(i, n, time, batch).astype(dtype) for i, n in enumerate((rows, columns)))
    tokens = tokens_of(VOCAB, batch, time).T
    static, table = ops._Static("rnn", dtype, LIBRARY), Inputs(jnp.zeros((columns, VOCAB)), tokens)
    matmul, by_token = ops._weight_grad(static, tiles(a), tiles(b), table)
    exact_a, exact_b = (np.asarray(x, np.float64).reshape(len(x), time * batch) for x in (a, b))
    assert distance(matmul, exact_a @ exact_b.T) < 1e-6
    assert distance(by_token, exact_b @ np.eye(VOCAB)[tokens.reshape(-1)]) < 1e-6
    # A column's sums have the same bits whatever the others are, so whichever thread adds them.
    last = columns - columns // 4 * 2
    some, _ = ops._weight_grad(static, tiles(a), tiles(b[-last:]), Inputs(table.igates))
    assert np.array_equal(some, matmul[:, -last:])


def differentiable_layer(cell, size):
    """A layer as a function of what it is differentiated by; arguments, and cotangents."""
    inputs, weights, carry = random_layer(cell, "table", size)

    def layer(igates, weights, carry):
        return run(cell, inputs._replace(igates=igates), weights, carry)

    return layer, (inputs.igates, weights, carry), random_cotangents(inputs, carry)


@pytest.mark.parametrize("cell", library.EXTRA_RESIDUALS)
def test_gradients_replace_no_residuals_that_are_read_again(cell):
    layer, arguments, cotangents = differentiable_layer(cell, Size(3, 4, 5))
    _, vjp = jax.vjp(layer, *arguments)
    assert same_bits(vjp(cotangents), vjp(cotangents))


@pytest.mark.parametrize("cell", library.EXTRA_RESIDUALS)
def test_float32_gradients_of_gates_take_the_memory_of_the_gates(cell):
    size = Size(32, 64, 32)
    layer, arguments, cotangents = differentiable_layer(cell, size)
    gradient = jax.jit(lambda *x: jax.vjp(layer, *x)[1](cotangents))
    memory = gradient.lower(*arguments).compile().memory_analysis().temp_size_in_bytes
    residuals = CELLS[cell].gates + library.EXTRA_RESIDUALS[cell]
    # Beside them, the outputs and h before each step; and the packed weights, which are small.
    assert memory / (4 * np.prod(size)) < residuals + 2.5


def test_gates_saturate_and_nan_stays_nan():
    positive = np.array(
        [0.0, -0.0, 1e-30, 1e-3, 0.6249, 0.6251, 5, 20, 89, 1e4, np.inf], np.float32
    )
    xs = np.concatenate([positive, -positive, [np.nan]])
    inputs = Inputs(jnp.asarray(xs)[None, :, None])  # one unit, one value a time step
    outputs, _ = run("rnn", inputs, Weights(jnp.zeros((1, 1)), None), (jnp.zeros((1, 1)),))
    np.testing.assert_allclose(outputs[0, :, 0], np.tanh(xs.astype(np.float64)), rtol=2e-7)

    # With a carry of 1 and a candidate of 0, a GRU's output is its update gate.
    igates = jnp.stack([jnp.zeros(xs.size), jnp.asarray(xs), jnp.zeros(xs.size)])
    weights = Weights(jnp.zeros((1, 3)), jnp.zeros(1))
    outputs, _ = run("gru", Inputs(igates[:, None]), weights, (jnp.ones((xs.size, 1)),))
    with np.errstate(over="ignore"):
        want = reference.sigmoid(xs.astype(np.float64))
    np.testing.assert_allclose(outputs[0, 0], want, rtol=3e-7, atol=1e-37)


@settings(max_examples=25)
@given(st.data())
def test_tokens_outside_the_table_are_clamped(data):
    tokens = data.draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=4))
    inputs, weights, carry = random_layer("rnn", "table", Size(1, 1, 3))
    wild = inputs._replace(tokens=jnp.asarray(tokens, jnp.int32)[:, None])
    clamped = wild._replace(tokens=jnp.clip(wild.tokens, 0, VOCAB - 1))
    assert np.array_equal(
        run("rnn", wild, weights, carry)[0], run("rnn", clamped, weights, carry)[0]
    )


KEEP = jnp.zeros((3, 2), jnp.int32)


def forward(cell="gru", igates=jnp.float32, rank=3, hidden=4, keep=KEEP):
    """A forward call of 2 sequences, 3 steps and 4 units, with one thing changed."""
    kernel, bias, state = jnp.zeros((4, 12)), jnp.zeros(hidden), jnp.zeros((4, 2))
    igates = jnp.zeros((12, 3, 2)[:rank], igates)
    shapes, arguments = [ops._shape(4, 3, 2), ops._shape(4, 2)], (kernel, bias, igates, state, keep)
    sizes, attributes = ("gru", 4, 2, 0), {"cell": cell} if cell else {}
    static = ops._Static("gru", "float32", LIBRARY)
    return static.call(library.FORWARD, shapes, arguments, sizes, **attributes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(forward, cell="mgu"), "no cell 'mgu' in C"),
        (partial(forward, cell=""), "attribute cell is missing"),
        (partial(forward, igates=jnp.bfloat16), "igates has dtype"),
        (partial(forward, rank=1), "igates has rank 1"),
        (partial(forward, rank=2), "tokens has dtype"),
        (partial(forward, hidden=5), "axis 0 of bias has size 5, not 4"),
        (partial(forward, keep=KEEP.T), "axis 0 of keep has size 2, not 3"),
        (partial(forward, keep=KEEP.astype(bool)), "keep has dtype"),
        (partial(forward, cell="rnn"), "axis 1 of kernel has size 12, not 4"),
    ],
)
def test_a_wrong_call_is_an_error_and_no_wild_read(call, message):
    forward()  # right as it is
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(call())


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-mavx2 -mfma", "-msse2", "-mavx512f"])
def test_other_processors_get_the_same_numbers(tmp_path, flags):
    if os.uname().machine != "x86_64":
        pytest.skip("flags of another processor")
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\nexec cc $(echo "$@" | sed "s/-march=native/{flags}/")\n')
    compiler.chmod(0o755)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "CC": str(compiler)}
    names = "test_invariants.py", "test_c.py", "test_c_cross_entropy.py"
    tests = [Path(__file__).with_name(name) for name in names]
    chosen = "(test_c and not other_processors) or -c]"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", *map(str, tests), "-k", chosen],
        env=environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
