"""Decoding token by token equals the training forward pass (invariant 3 of CONTRIBUTING.md)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from charjax.config import CELL_SIZES, ModelConfig
from charjax.errors import InputError
from charjax.model import decode
from charjax.model.carry import document_resets
from charjax.model.cells import CELLS
from charjax.model.decode import decode_state, decode_step
from charjax.model.decode_weights import decode_weights, mask_token
from tests.model.small import UNOPTIMIZED, apply, carry_of, distance, params_of, tokens_of

VOCAB, BATCH, TIME = 7, 3, 8


def decode_loop(config, params, tokens, carry, layout="batch_major", masked=None):
    """Logits [batch, time, vocab] and the last carry, by a loop over `decode_step`."""
    weights = decode_weights(config, params, layout=layout)
    weights = weights if masked is None else mask_token(weights, masked)
    return decode_with(config, weights, tokens, carry)


def decode_with(config, weights, tokens, carry):
    """As `decode_loop`."""

    def advance(state, token):
        logits, state = decode_step(config, weights, weights.lookup(token), state)
        return state, logits

    last, logits = jax.lax.scan(advance, decode_state(weights, carry), tokens.T)
    last = jax.tree.map(jnp.transpose, last.carry) if weights.features_first else last.carry
    return logits.swapaxes(0, 1), last


run_decode_loop = jax.jit(decode_loop, static_argnums=(0, 4, 5), compiler_options=UNOPTIMIZED)


def decoded_and_network(config, layout):
    inputs = params_of(config, VOCAB), tokens_of(VOCAB, BATCH, TIME), carry_of(config, BATCH)
    return run_decode_loop(config, *inputs, layout), apply(config, *inputs)


LAYOUTS = ("batch_major", "feature_major", "vector")
INT8_CELLS = [name for name, sizes in CELL_SIZES.items() if sizes.has_int8]
SHAPES = ((1, 0), (3, 4))  # layers, embed
# Either of the two with both shapes.
each_cell_and_layout = pytest.mark.parametrize(
    ("cell", "layout", "layers", "embed"),
    [
        (cell, layout, *SHAPES[(i + j) % 2])
        for i, cell in enumerate(CELLS)
        for j, layout in enumerate(LAYOUTS)
    ],
)


@each_cell_and_layout
def test_decoding_equals_the_network(cell, layers, embed, layout):
    config = ModelConfig(cell=cell, hidden=5, layers=layers, embed=embed)
    decoded, network = decoded_and_network(config, layout)
    assert distance(decoded, network) < 1e-5


@each_cell_and_layout
def test_bfloat16_decoding_rounds_what_the_network_rounds(cell, layers, embed, layout):
    config = ModelConfig(cell=cell, hidden=5, layers=layers, embed=embed, dtype="bfloat16")
    decoded, network = decoded_and_network(config, layout)
    assert distance(decoded[0][:, :1], network[0][:, :1]) < 1e-5
    # At later positions, values that differ in the last bit may round apart.
    assert distance(decoded, network) < 0.01
    float32, _ = decoded_and_network(replace(config, dtype="float32"), layout)
    assert 0 < distance(decoded, float32) < 0.05


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("wide", [False, True], ids=["float16", "float64"])
def test_parameters_of_other_dtypes_are_cast_as_by_the_network(dtype, wide):
    config = ModelConfig(cell="gru", hidden=5)  # without an embedding, the table is a kernel
    params, config = params_of(config, VOCAB), replace(config, dtype=dtype)
    with jax.enable_x64(wide):
        other = jax.tree.map(lambda x: x.astype("float64" if wide else "float16"), params)
        got = decode_weights(config, other)
    rounded = jax.tree.map(lambda x: x.astype("float32"), other)
    got, want = jax.tree.leaves(got), jax.tree.leaves(decode_weights(config, rounded))
    assert distance(got, want) == 0
    assert {leaf.dtype for leaf in got} == {jnp.dtype("float32")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masking_a_token_changes_no_other_logit(layout):
    config = ModelConfig(cell="gru", hidden=5, layers=2, embed=4)
    inputs = params_of(config, VOCAB), tokens_of(VOCAB, BATCH, TIME), carry_of(config, BATCH)
    plain, _ = run_decode_loop(config, *inputs, layout)
    masked, _ = run_decode_loop(config, *inputs, layout, 1)
    assert (masked[..., 1] == -jnp.inf).all()
    assert (masked[..., 0] == plain[..., 0]).all()
    assert (masked[..., 2:] == plain[..., 2:]).all()


def int8_inputs(cell, layers=2):
    """Config, params, tokens and carry of a quantized model."""
    config = ModelConfig(cell=cell, hidden=37, layers=layers, embed=4)
    carry = jax.tree.map(jnp.tanh, carry_of(config, BATCH))  # in [-1, 1], as every state is
    inputs = params_of(config, VOCAB), tokens_of(VOCAB, BATCH, TIME), carry
    return replace(config, dtype="int8"), *inputs


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("cell", INT8_CELLS)
def test_int8_decoding_is_bit_for_bit_the_same_in_any_batch_and_dtype(cell):
    """In another layout of the states tanh may differ by a bit, as with jax 0.12."""
    # A second layer takes as long to compile as the first; that of one cell is enough, and so are
    # all pairs of layout and dtype.
    config, params, *text = int8_inputs(cell, layers=2 if cell == "gru" else 1)
    weights = jax.jit(
        partial(decode_weights, config),
        static_argnames=("layout", "operands"),
        compiler_options=UNOPTIMIZED,
    )
    optimized = jax.jit(partial(decode_with, config))  # as in use, for another batch
    unoptimized = jax.jit(partial(decode_with, config), compiler_options=UNOPTIMIZED)

    def decoded(layout, operands):
        return unoptimized(weights(params, layout=layout, operands=operands), *text)

    batch_major = decoded("batch_major", "float32")
    feature_major = decoded("feature_major", "bfloat16")
    if cell == "gru":
        assert distance(decoded("batch_major", "bfloat16"), batch_major) == 0
        assert distance(decoded("feature_major", "float32"), feature_major) == 0
    for other in (feature_major, decoded("vector", "float32")):
        assert distance(other, batch_major) < 1e-6
    of_all = weights(params, layout="batch_major", operands="float32")
    first_text, first = jax.tree.map(lambda x: x[:1], (text, optimized(of_all, *text)))
    assert distance(optimized(of_all, *first_text), first) == 0


@pytest.mark.parametrize("cell", INT8_CELLS)
def test_int8_logits_are_close_to_float32(cell):
    config, *inputs = int8_inputs(cell)
    (int8, _), (float32, _) = (
        run_decode_loop(c, *inputs) for c in (config, replace(config, dtype="float32"))
    )
    assert 0 < distance(int8[:, :1], float32[:, :1]) < 0.02


@pytest.mark.parametrize("cell", CELLS)
def test_decode_sequence_resets_as_the_network_does(cell):
    config, params, tokens, carry = int8_inputs(cell)
    exact, resets = replace(config, dtype="float32"), document_resets(tokens, 2)
    assert resets.any()
    run = jax.jit(decode.decode_sequence, static_argnums=0, compiler_options=UNOPTIMIZED)
    got = run(exact, params, tokens, carry, resets=resets)
    assert distance(got, apply(exact, params, tokens, carry, resets=resets)) < 1e-4


def test_the_network_refuses_int8():
    with pytest.raises(InputError, match="int8"):
        apply(*int8_inputs("gru"))
