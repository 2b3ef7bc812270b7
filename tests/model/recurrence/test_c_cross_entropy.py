"""The cross entropy in C equals that of float64, and that of XLA."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.config import ModelConfig
from charjax.model import cross_entropy as model
from charjax.model.recurrence.c import library
from charjax.model.recurrence.c.cross_entropy import cross_entropy
from tests.model.recurrence.c_library import LIBRARY, needs_c, skip_without
from tests.model.recurrence.implementations import DTYPES, same_bits
from tests.model.small import distance, float64, normal, tokens_of

pytestmark = needs_c

# (features, vocab, time, batch): around panels of rows, tiles and the tiles of an item.
SIZES = [(2, 1, 1, 1), (7, 65, 9, 17), (33, 24, 5, 48), (64, 130, 3, 32)]


def operands(features, vocab, time, batch):
    kernel, bias = normal(0, features, vocab), normal(1, vocab)
    return kernel, bias, normal(2, features, time, batch), tokens_of(vocab, batch, time).T


@partial(jax.jit, static_argnums=(0, 1))
def value_and_grads(function, dtype, kernel, bias, x, targets, d_nats):
    nats, vjp = jax.vjp(lambda *floats: function(dtype, *floats, targets), kernel, bias, x)
    return nats, *vjp(d_nats)


in_c = partial(cross_entropy, LIBRARY)


def in_xla(dtype, kernel, bias, x, targets):
    config = ModelConfig(dtype=jnp.dtype(dtype).name, recurrence="xla")
    return model.cross_entropy(config, kernel, bias, x, targets)


def in_float64(kernel, bias, x, targets, d_nats):
    kernel, bias, x, d_nats = float64((kernel, bias, x, d_nats))
    logits = np.tensordot(kernel.T, x, 1) + bias[:, None, None]
    exps = np.exp(logits - logits.max(axis=0))
    one_hot = np.arange(len(bias))[:, None, None] == np.asarray(targets)
    nats = np.log(exps.sum(axis=0)) - np.sum(one_hot * (logits - logits.max(axis=0)), axis=0)
    d_logits = d_nats * (exps / exps.sum(axis=0) - one_hot)
    d_kernel = np.tensordot(x, d_logits, ((1, 2), (1, 2)))
    return nats, d_kernel, d_logits.sum(axis=(1, 2)), np.tensordot(kernel, d_logits, 1)


@pytest.mark.parametrize("size", SIZES)
def test_value_and_gradients_are_those_of_float64(size):
    arguments = *operands(*size), normal(3, *size[2:])
    got = value_and_grads(in_c, jnp.float32, *arguments)
    assert [a.dtype for a in got] == [jnp.float32] * 4
    assert distance(got, in_float64(*arguments)) < 3e-6


@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_rounds_the_operands_that_xla_rounds(size):
    skip_without("bfloat16")
    arguments = jnp.bfloat16, *operands(*size), normal(3, *size[2:])
    # A gradient of the logits that lies between two bfloat16 numbers may fall to the other one.
    assert distance(*(value_and_grads(f, *arguments) for f in (in_c, in_xla))) < 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_a_sequence_do_not_depend_on_the_batch(dtype):
    skip_without(dtype)
    kernel, bias, x, targets = operands(9, 20, 6, 37)
    d_nats = normal(3, 6, 37)
    nats, _, _, d_x = value_and_grads(in_c, dtype, kernel, bias, x, targets, d_nats)
    for part in (slice(0, 1), slice(5, 37)):
        batch = (a[..., part] for a in (x, targets, d_nats))
        alone = value_and_grads(in_c, dtype, kernel, bias, *batch)
        assert same_bits((alone[0], alone[3]), (nats[:, part], d_x[..., part]))


def test_logits_of_any_size_have_finite_gradients_and_nan_has_none():
    kernel, bias, x, targets = operands(4, 6, 5, 3)
    large = value_and_grads(in_c, jnp.float32, kernel, 1e30 * bias, x, targets, jnp.ones((5, 3)))
    assert all(np.isfinite(a).all() for a in large)
    impossible = bias.at[2].set(-jnp.inf)
    without = value_and_grads(
        in_c, jnp.float32, kernel, impossible, x, 0 * targets, jnp.ones((5, 3))
    )
    assert all(np.isfinite(a).all() for a in without)
    assert distance(without[1][:, 2], np.zeros(4)) < 1e-30, "impossible characters have no gradient"
    broken = in_c(jnp.float32, kernel, bias.at[2].set(jnp.nan), x, targets)
    assert np.isnan(broken).all(), "the step must see that a loss is not finite"


def test_the_memory_depends_on_the_number_of_positions_alone():
    def memory(time, batch):
        arguments = *operands(8, 65, time, batch), normal(3, time, batch)
        program = value_and_grads.lower(in_c, jnp.float32, *arguments).compile()
        return program.memory_analysis().temp_size_in_bytes

    one_sequence, many = memory(256, 1), memory(16, 16)
    assert one_sequence < 1.1 * many


@pytest.mark.parametrize("function", [in_c, in_xla])
def test_a_target_outside_the_vocabulary_has_no_cross_entropy(function):
    kernel, bias, x, targets = operands(4, 6, 5, 3)
    outside = targets.at[1, 2].set(6).at[3, 0].set(-1)
    got = function(jnp.float32, kernel, bias, x, outside)
    assert np.array_equal(np.isnan(got), np.asarray(outside != targets))
    ignored = (outside == targets).astype(jnp.float32)
    grads = value_and_grads(function, jnp.float32, kernel, bias, x, outside, ignored)[1:]
    assert all(np.isfinite(a).all() for a in grads), "a position that is masked"


def forward(kernel=(4, 6), bias=(6,), x=(4, 5, 3), targets=jnp.int32):
    """A forward call with one thing changed."""
    shapes = [(tiles := -(-5 * 3 // LIBRARY.vector_width), 6, LIBRARY.vector_width)]
    shapes += [(tiles, LIBRARY.vector_width)] * 2
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    arguments = jnp.zeros(kernel), jnp.zeros((5, 3), targets), jnp.zeros(x), jnp.zeros(bias)
    sizes = 4, 6, tiles
    return LIBRARY.call(library.CROSS_ENTROPY_FORWARD, jnp.float32, results, arguments, sizes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(forward, kernel=(4,)), "kernel has rank 1"),
        (partial(forward, kernel=(4, 7)), "axis 0 of bias has size 6, not 7"),
        (partial(forward, bias=(5,)), "axis 0 of bias has size 5, not 6"),
        (partial(forward, x=(4, 3, 5)), "axis 1 of x has size 3, not 5"),
        (partial(forward, targets=jnp.float32), "targets has dtype"),
    ],
)
def test_a_wrong_call_is_an_error_and_no_wild_read(call, message):
    forward()  # right as it is
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(call())
