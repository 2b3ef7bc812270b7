"""Law 5 for the recurrence in C, whose bits are each lane's own; and that charjax does without."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charjax.config import ModelConfig
from charjax.model.cells import CELLS
from charjax.model.network import CharRNN, initial_carry
from charjax.model.recurrence import xla
from charjax.model.recurrence.base import Projected, Table, Weights
from charjax.model.recurrence.c import build, ops
from tests.model import reference
from tests.model.small import UNOPTIMIZED, distance, float64, like, normal, params_of, tokens_of

VOCAB = 7
KERNELS = build.load()
DTYPES = ["float32", "bfloat16"]

needs_kernels = pytest.mark.skipif(
    isinstance(KERNELS, build.Unavailable), reason=f"no kernels here: {KERNELS}"
)


def needs(dtype):
    if not KERNELS.supports_dtype(dtype):
        pytest.skip(f"this processor has no products of {dtype}")


def layer_inputs(cell, kind, batch, time, hidden):
    gates = CELLS[cell].gates * hidden
    bias = normal(2, hidden) if CELLS[cell].reset_after else None
    weights = Weights(normal(1, hidden, gates) / hidden**0.5, bias)
    carry = tuple(normal(3, CELLS[cell].states, batch, hidden))
    if kind is Table:
        return Table(normal(0, gates, VOCAB), tokens_of(VOCAB, batch, time).T), weights, carry
    return Projected(normal(0, gates, time, batch)), weights, carry


def value_and_gradient(run, source, weights, carry):
    """Outputs and last carry, and the gradients of all that is no token."""

    def layer(columns, weights, carry):
        return run(source._replace(igates=columns), weights, carry)

    @partial(jax.jit, compiler_options=UNOPTIMIZED)
    def both(*at):
        out, transpose = jax.vjp(layer, *at)
        return out, transpose(like(out, 4))

    return both(source.igates, weights, carry)


def in_c(cell, dtype):
    return lambda *at: ops.run(cell, dtype, *at)


def in_xla(cell, dtype):
    return lambda *at: xla.run(cell, dtype, *at)


@needs_kernels
@pytest.mark.parametrize("kind", [Projected, Table])
@pytest.mark.parametrize("cell", CELLS)
def test_values_are_those_of_the_float64_layer(cell, kind):
    source, weights, carry = layer_inputs(cell, kind, 3, 9, 50)
    wide = float64((source.igates, weights, carry))
    columns = wide[0][:, source.tokens] if kind is Table else wide[0]
    outputs, last = reference.layer(cell, np.moveaxis(columns, 0, -1), *wide[1], wide[2])
    got = ops.run(cell, "float32", source, weights, carry)
    assert distance(got, (np.moveaxis(outputs, -1, 0), last)) < 1e-6


# Around the sizes of tiles and panels, and of pairs in bfloat16.
SIZES = [(1, 2, 2), (3, 4, 5), (16, 2, 24), (37, 3, 51)]


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [Projected, Table])
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients_are_those_of_xla(cell, kind, dtype):
    needs(dtype)
    for size in SIZES:
        at = layer_inputs(cell, kind, *size)
        got, want = (value_and_gradient(run(cell, dtype), *at) for run in (in_c, in_xla))
        # In bfloat16 a difference in the last bit may fall on either side of a rounding.
        assert distance(got, want) < {"float32": 2e-6, "bfloat16": 0.01}[dtype], size


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_lane_has_the_same_bits_whatever_runs_beside_it(cell, dtype):
    needs(dtype)
    source, weights, carry = layer_inputs(cell, Table, 37, 5, 30)
    at = source, weights, carry
    (outputs, last), (_, _, d_carry) = value_and_gradient(in_c(cell, dtype), *at)
    for lanes in (slice(0, 1), slice(15, 17), slice(3, 37)):
        some = source._replace(tokens=source.tokens[:, lanes])
        out, transpose = jax.vjp(
            lambda carry, some=some: in_c(cell, dtype)(some, weights, carry),
            tuple(part[lanes] for part in carry),
        )
        whole = outputs[..., lanes], tuple(part[lanes] for part in last)
        assert jax.tree.all(jax.tree.map(np.array_equal, out, whole))
        weighting = like((outputs, last), 4)
        cut = weighting[0][..., lanes], tuple(part[lanes] for part in weighting[1])
        (got,) = transpose(cut)
        assert jax.tree.all(
            jax.tree.map(np.array_equal, got, tuple(part[lanes] for part in d_carry))
        )


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_chunks_are_the_whole_bit_for_bit(cell, dtype):
    needs(dtype)
    source, weights, carry = layer_inputs(cell, Table, 4, 8, 20)
    outputs, last = in_c(cell, dtype)(source, weights, carry)
    pieces = []
    for chunk in (slice(0, 3), slice(3, 8)):
        piece, carry = in_c(cell, dtype)(
            source._replace(tokens=source.tokens[chunk]), weights, carry
        )
        pieces.append(piece)
    assert np.array_equal(np.concatenate(pieces, axis=1), outputs)
    assert jax.tree.all(jax.tree.map(np.array_equal, carry, last))


# [rows, columns, time, batch]: around tiles, panels, and the steps that are added up at a time.
STACKS = [(1, 1, 1, 1), (24, 16, 64, 16), (25, 33, 19, 27), (2, 130, 79, 13)]


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "time", "batch"), STACKS)
def test_sums_over_all_positions_are_those_of_float64(rows, columns, time, batch, dtype):
    needs(dtype)
    a, b = (normal(i, n, time, batch).astype(dtype) for i, n in enumerate((rows, columns)))
    tokens = tokens_of(VOCAB, batch, time).T
    table = Table(jnp.zeros((columns, VOCAB)), tokens)
    product, by_symbol = ops._weight_and_table_grad(KERNELS, a, b, table)
    wide_a, wide_b = (np.asarray(x, np.float64).reshape(len(x), time * batch) for x in (a, b))
    assert distance(product, wide_a @ wide_b.T) < 1e-6
    assert distance(by_symbol, wide_b @ np.eye(VOCAB)[tokens.reshape(-1)]) < 1e-6
    # A column's sums are the same bits whatever others there are, so whoever computes them.
    some = ops._weight_grad(KERNELS, a, b[columns // 2 :])
    assert np.array_equal(some, product[:, columns // 2 :])


@needs_kernels
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_kept_for_a_gradient_changes_no_value(cell):
    at = layer_inputs(cell, Projected, 3, 4, 10)
    kept, _ = jax.vjp(in_c(cell, "float32"), *at)
    assert jax.tree.all(jax.tree.map(np.array_equal, in_c(cell, "float32")(*at), kept))


@needs_kernels
def test_gates_are_right_where_they_saturate_and_a_number_that_is_none_stays_so():
    wide = np.array([0.0, -0.0, 1e-30, 1e-3, 0.6249, 0.6251, 5, 20, 89, 1e4, np.inf], np.float32)
    xs = np.concatenate([wide, -wide, [np.nan]])
    source = Projected(jnp.asarray(xs)[None, :, None])  # one unit, one character a time step
    weights = Weights(jnp.zeros((1, 1)), None)
    outputs, _ = in_c("rnn", "float32")(source, weights, (jnp.zeros((1, 1)),))
    np.testing.assert_allclose(outputs[0, :, 0], np.tanh(xs.astype(np.float64)), rtol=2e-7)

    # With a carry of 1 and no input, a GRU's output is its update gate.
    columns = jnp.stack([jnp.zeros(xs.size), jnp.asarray(xs), jnp.zeros(xs.size)])
    source = Projected(columns[:, None])
    weights = Weights(jnp.zeros((1, 3)), jnp.zeros(1))
    outputs, _ = in_c("gru", "float32")(source, weights, (jnp.ones((xs.size, 1)),))
    with np.errstate(over="ignore"):
        want = reference.sigmoid(xs.astype(np.float64))
    np.testing.assert_allclose(outputs[0, 0], want, rtol=3e-7, atol=1e-37)


@needs_kernels
@settings(max_examples=25)
@given(st.data())
def test_a_symbol_outside_of_the_table_reads_nothing_else(data):
    tokens = data.draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=4))
    source, weights, carry = layer_inputs("rnn", Table, 1, 1, 3)
    wild = source._replace(tokens=jnp.asarray(tokens, jnp.int32)[:, None])
    outputs, _ = in_c("rnn", "float32")(wild, weights, carry)
    tame = wild._replace(tokens=jnp.clip(wild.tokens, 0, VOCAB - 1))
    assert np.array_equal(outputs, in_c("rnn", "float32")(tame, weights, carry)[0])


@needs_kernels
def test_the_network_takes_them_by_default():
    config = ModelConfig(cell="gru", hidden=8, layers=2, embed=4)
    params, tokens = params_of(config, VOCAB), tokens_of(VOCAB, 2, 3)

    def program(config):
        run = CharRNN(config, VOCAB).run
        return jax.jit(run).lower(params, tokens, initial_carry(config, 2)).as_text()

    assert build.FORWARD in program(config)
    assert build.FORWARD not in program(replace(config, recurrence="xla"))


# ---- Where they come from ----


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """The folder of an empty cache, as `build` sees it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "charjax" / "kernels"


def found(library) -> bool:
    return hasattr(library, build.FORWARD)


@needs_kernels
def test_they_are_compiled_once(shelf, monkeypatch):
    assert found(build.open_library())
    (kept,) = shelf.iterdir()  # and nothing half-made beside it
    monkeypatch.setenv("CC", "no-such-compiler")
    assert found(build.open_library())
    assert list(shelf.iterdir()) == [kept]


@needs_kernels
def test_a_damaged_file_is_compiled_anew(shelf):
    shelf.mkdir(parents=True)
    damaged = shelf / f"{build._cache_key()}.so"
    damaged.write_bytes(b"no library")
    assert found(build.open_library())
    assert damaged.stat().st_size > 1000


@needs_kernels
def test_a_cache_that_cannot_be_written_is_done_without(shelf):
    shelf.parent.write_text("a file where a folder should be")
    assert found(build.open_library())


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_there_is_a_reason(shelf, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    absent = build.open_library()
    assert isinstance(absent, build.Unavailable)
    assert "compiler" in absent.reason or compiler in absent.reason
    assert not shelf.exists()


def test_without_kernels_the_network_runs_all_the_same(monkeypatch):
    config = ModelConfig(cell="lstm", hidden=8, embed=4)
    at = params_of(config, VOCAB), tokens_of(VOCAB, 2, 3), initial_carry(config, 2)
    with_them = CharRNN(config, VOCAB).run(*at)
    monkeypatch.setattr(ops, "load", lambda: build.Unavailable("none today"))
    assert distance(CharRNN(config, VOCAB).run(*at), with_them) < 1e-6


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("processor", ["-mavx2 -mfma", "-msse2", "-mavx512f"])
def test_other_processors_get_the_same_numbers(tmp_path, processor):
    if os.uname().machine != "x86_64":
        pytest.skip("flags of another processor")
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\nexec cc $(echo "$@" | sed "s/-march=native/{processor}/")\n')
    compiler.chmod(0o755)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "CC": str(compiler)}
    laws = "values or lane or positions or chunks or saturate"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", __file__, "-k", laws],
        env=environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
