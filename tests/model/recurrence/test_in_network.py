"""The network is the same with each implementation, and runs the one that was chosen."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.config import ModelConfig
from charjax.model.carry import initial_carry
from charjax.model.cells import CELLS
from charjax.model.network import CharRNN
from charjax.model.recurrence.api import resolve
from charjax.model.recurrence.c import build, library, ops
from tests.model.recurrence.c_library import needs_c
from tests.model.small import UNOPTIMIZED, carry_of, distance, like, params_of, tokens_of

VOCAB, BATCH, TIME = 7, 3, 6
SMALL = ModelConfig(cell="gru", hidden=5, layers=2, embed=4)


def test_without_the_c_library_the_network_runs_all_the_same(monkeypatch):
    config = replace(SMALL, cell="lstm", layers=1)
    at = params_of(config, VOCAB), tokens_of(VOCAB, BATCH, TIME), carry_of(config, BATCH)
    with_c = CharRNN(config, VOCAB).run(*at)
    monkeypatch.setattr(ops.build, "load", lambda: build.Unavailable("none today"))
    assert resolve(config, BATCH) == ("xla", "c refuses: none today")
    assert distance(CharRNN(config, VOCAB).run(*at), with_c) < 1e-6


@pytest.mark.parametrize(("batch", "time"), [(BATCH, 0), (0, TIME)])
@pytest.mark.parametrize("cell", ["lstm", "minlstm"])
def test_an_empty_text_has_no_logits_and_no_gradient(cell, batch, time):
    config = replace(SMALL, cell=cell)
    params, carry = params_of(config, VOCAB), carry_of(config, batch)
    tokens = tokens_of(VOCAB, batch, time)
    (logits, last), (d_params, d_carry) = value_and_grads(config, params, carry, tokens, None)
    assert logits.shape == (batch, time, VOCAB)
    assert not any(np.any(d) for d in jax.tree.leaves(d_params))
    assert jax.tree.all(jax.tree.map(np.array_equal, last, carry))
    # `value_and_grads` weighs the last carry by these numbers.
    assert jax.tree.all(jax.tree.map(np.array_equal, d_carry, like((logits, last), 4)[1]))


@needs_c
def test_the_network_runs_what_was_chosen():
    params, tokens = params_of(SMALL, VOCAB), tokens_of(VOCAB, BATCH, TIME)

    def program(config):
        run = jax.jit(CharRNN(config, VOCAB).run)
        return run.lower(params, tokens, initial_carry(config, BATCH)).as_text()

    assert library.FORWARD in program(SMALL)
    assert library.FORWARD not in program(replace(SMALL, recurrence="xla"))


@partial(jax.jit, static_argnums=0, compiler_options=UNOPTIMIZED)
def value_and_grads(config, params, carry, tokens, keys):
    def loss(params, carry):
        out = CharRNN(config, VOCAB).run(params, tokens, carry, keys)
        weighted = jax.tree.map(jnp.vdot, out, like(out, 4))
        return sum(jax.tree.leaves(weighted)), out

    (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, carry)
    return out, grads


def network(config, **changes):
    """Logits and carry, and the gradients of the parameters and of the first carry."""
    at = (params_of(config, VOCAB), carry_of(config, BATCH), tokens_of(VOCAB, BATCH, TIME))
    keys = jax.random.split(jax.random.key(0), BATCH)
    return value_and_grads(replace(config, **changes), *at, keys)


DROPOUT = {"dropout": 0.3, "dropout_in": 0.2, "dropout_between": 0.4}
SHAPES = [(1, 4, {}), (2, 0, DROPOUT)]  # the first layer looks tokens up, or projects its input


@pytest.mark.parametrize("shape", range(len(SHAPES)))
@pytest.mark.parametrize("cell", [cell for cell in CELLS if not CELLS[cell].rounds])  # scan alone
def test_the_network_is_the_same_with_each(cell, shape):
    # Pairwise: every cell with every shape, and either of them with both implementations.
    recurrence = ("fast", "xla")[(shape + list(CELLS).index(cell)) % 2]
    if not CELLS[cell].has_recurrent_kernel:
        recurrence = "parallel"
    layers, embed, dropout = SHAPES[shape]
    config = replace(SMALL, cell=cell, layers=layers, embed=embed, **dropout)
    got, want = network(config, recurrence=recurrence), network(config, recurrence="scan")
    assert distance(got, want) < 1e-5


@pytest.mark.parametrize("cell", CELLS)
def test_the_network_in_bfloat16_is_close_with_each(cell):
    config = replace(SMALL, cell=cell, layers=1)
    names = resolve(config, BATCH).implementation, "scan"
    exact = network(config, recurrence="scan")
    fast, scan = (network(config, dtype="bfloat16", recurrence=name) for name in names)
    # bfloat16 keeps 8 bits: each rounding is off by up to 0.4 %, and a few add up.
    assert 0 < distance(fast, exact) < 0.05  # not zero, or nothing ran in bfloat16
    assert 0 < distance(scan, exact) < 0.05
    assert distance(fast, scan) < 0.05
    assert {leaf.dtype for leaf in jax.tree.leaves((fast, scan))} == {jnp.dtype(jnp.float32)}
