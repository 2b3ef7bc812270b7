"""Law 3: what sampling runs, one character at a time, is the network that was trained."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from charjax.config import ModelConfig
from charjax.errors import InputError
from charjax.model import decode
from charjax.model.cells import CELLS
from charjax.model.decode import decode_state, decode_weights, mask_token, step
from tests.model.small import UNOPTIMIZED, apply, carry_of, distance, params_of, tokens_of

VOCAB, BATCH, TIME = 7, 3, 8


def stepping(config, params, tokens, carry, layout="rows", change=lambda w: w, operands=""):
    """Logits [batch, time, vocab] and the last carry, by stepping."""
    weights = change(decode_weights(config, params, layout=layout, operands=operands))

    def advance(state, token):
        logits, state = step(config, weights, weights.select(token), state)
        return state, logits

    last, logits = jax.lax.scan(advance, decode_state(weights, carry), tokens.T)
    last = jax.tree.map(jnp.transpose, last.carry) if weights.columns else last.carry
    return logits.swapaxes(0, 1), last


STATIC = (0, 4, 5, 6)
decode_sequence = jax.jit(stepping, static_argnums=STATIC, compiler_options=UNOPTIMIZED)


def both(config, layout):
    at = (params_of(config, VOCAB), tokens_of(VOCAB, BATCH, TIME), carry_of(config, BATCH))
    return decode_sequence(config, *at, layout), apply(config, *at)


LIES = pytest.mark.parametrize("layout", ["rows", "columns", "column"])
SHAPES = pytest.mark.parametrize(("layers", "embed"), [(1, 0), (3, 4)])


@LIES
@SHAPES
@pytest.mark.parametrize("cell", CELLS)
def test_stepping_is_the_network(cell, layers, embed, layout):
    stepped, whole = both(ModelConfig(cell=cell, hidden=5, layers=layers, embed=embed), layout)
    assert distance(stepped, whole) < 1e-5


@LIES
@SHAPES
@pytest.mark.parametrize("cell", CELLS)
def test_in_bfloat16_it_rounds_what_the_network_rounds(cell, layers, embed, layout):
    config = ModelConfig(cell=cell, hidden=5, layers=layers, embed=embed, dtype="bfloat16")
    stepped, whole = both(config, layout)
    assert distance(stepped[0][:, :1], whole[0][:, :1]) < 1e-5
    # Later on, a difference in the last bit may fall on either side of a rounding.
    assert distance(stepped, whole) < 0.01
    exact, _ = both(replace(config, dtype="float32"), layout)
    assert 0 < distance(stepped, exact) < 0.05


def test_it_goes_on_from_its_own_carry():
    config = ModelConfig(cell="lstm", hidden=5, layers=3, embed=4)
    params, tokens = params_of(config, VOCAB), tokens_of(VOCAB, BATCH, TIME)
    whole, last = decode_sequence(config, params, tokens, carry_of(config, BATCH))
    _, between = decode_sequence(config, params, tokens[:, : TIME // 2], carry_of(config, BATCH))
    second = decode_sequence(config, params, tokens[:, TIME // 2 :], between)
    assert distance(second, (whole[:, TIME // 2 :], last)) < 1e-5


def without_second(weights):
    return mask_token(weights, 1)


@LIES
def test_a_symbol_left_out_changes_no_other_logit(layout):
    config = ModelConfig(cell="gru", hidden=5, layers=2, embed=4)
    at = (params_of(config, VOCAB), tokens_of(VOCAB, BATCH, TIME), carry_of(config, BATCH))
    plain, _ = decode_sequence(config, *at, layout)
    without, _ = decode_sequence(config, *at, layout, without_second)
    assert (without[..., 1] == -jnp.inf).all()
    assert (without[..., 0] == plain[..., 0]).all()
    assert (without[..., 2:] == plain[..., 2:]).all()


def in_whole_numbers(cell):
    """A model of whole numbers, and text: config, params, tokens, carry."""
    config = ModelConfig(cell=cell, hidden=37, layers=2, embed=4)
    carry = jax.tree.map(jnp.tanh, carry_of(config, BATCH))  # no state is beyond 1
    at = params_of(config, VOCAB), tokens_of(VOCAB, BATCH, TIME), carry
    return replace(config, dtype="int8"), *at


@pytest.mark.parametrize("cell", CELLS)
def test_in_whole_numbers_a_lane_is_the_same_to_the_bit_whatever_is_beside_it(cell):
    config, params, *text = in_whole_numbers(cell)
    # As people run it: not optimised, tanh is another in columns than in rows, by a bit.
    run = jax.jit(stepping, static_argnums=STATIC)
    together = run(config, params, *text)
    others = ("rows", "bfloat16"), ("columns", "float32"), ("columns", "bfloat16")
    for layout, operands in (*others, ("column", "float32")):
        assert distance(run(config, params, *text, layout, operands=operands), together) == 0
    alone, wanted = jax.tree.map(lambda x: x[:1], (text, together))
    assert distance(run(config, params, *alone), wanted) == 0


@pytest.mark.parametrize("cell", CELLS)
def test_whole_numbers_are_near_the_weights(cell):
    config, *at = in_whole_numbers(cell)
    (first, _), (exact, _) = (
        decode_sequence(c, *at) for c in (config, replace(config, dtype="float32"))
    )
    assert 0 < distance(first[:, :1], exact[:, :1]) < 0.02


@pytest.mark.parametrize("cell", CELLS)
def test_a_text_stepped_through_is_its_steps(cell):
    at = in_whole_numbers(cell)
    text = jax.jit(decode.decode_sequence, static_argnums=0, compiler_options=UNOPTIMIZED)(*at)
    assert distance(text, decode_sequence(*at, "columns")) == 0


def test_the_network_refuses_whole_numbers():
    with pytest.raises(InputError, match="int8"):
        apply(*in_whole_numbers("gru"))
