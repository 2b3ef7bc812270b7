"""Law 5 for the persistent recurrence: as far as it can be seen without a GPU, it is the fast one.

Its kernels run in Pallas' interpret mode, all CTAs at the same time, with barriers made
of plain memory. And they are lowered for CUDA, which refuses layouts, copies and sizes that
a GPU could not do.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from charjax.config import ModelConfig
from charjax.errors import InputError
from charjax.model.cells import CELLS
from charjax.model.network import CharRNN, init_params
from charjax.model.recurrence.api import resolve
from charjax.model.recurrence.base import Layer, Projected, Table, Weights
from charjax.model.recurrence.pallas_hopper import ops
from charjax.model.recurrence.pallas_hopper.ops import Machine
from charjax.model.recurrence.pallas_hopper.tiling import LANES, Spread, spreads
from charjax.model.recurrence.xla import run as recur
from tests.model.small import carry_of, distance, like, normal, params_of, tokens_of

VOCAB, TIME, HIDDEN = 7, 3, 128
TWO_CTAS = Machine(multiprocessors=2, interpret=InterpretGPUParams())


def layer_inputs(cell, kind, batch=LANES, hidden=HIDDEN, time=TIME):
    gates, states = CELLS[cell].gates * hidden, CELLS[cell].states
    bias = normal(2, hidden) if CELLS[cell].reset_after else None
    weights = Weights(normal(1, hidden, gates) / hidden**0.5, bias)
    carry = tuple(normal(3, states, batch, hidden))
    if kind is Table:
        return Table(normal(0, gates, VOCAB), tokens_of(VOCAB, batch, time).T), weights, carry
    return Projected(normal(0, gates, time, batch)), weights, carry


def value_and_grads(layer, source, weights, carry):
    """Outputs and last carry, and the gradients of all that they depend on."""

    def of(columns, weights, carry):
        return layer(source._replace(igates=columns), weights, carry)

    value, transpose = jax.vjp(of, source.igates, weights, carry)
    return value, transpose(like(value, 4))


def assert_is_fast(cell, inputs):
    got = value_and_grads(partial(ops.recur, cell, TWO_CTAS), *inputs)
    want = value_and_grads(partial(recur, cell, jnp.bfloat16), *inputs)
    # Sums in another order now and then round a state or a gradient to the next bfloat16.
    assert distance(got, want) < 0.01
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}


def test_value_and_gradient_are_those_of_the_fast_recurrence():
    assert_is_fast("gru", layer_inputs("gru", Table))


def test_sums_cut_in_parts_are_the_same_sums(monkeypatch):
    ways = tuple(
        Spread(HIDDEN, sums, outs, units=HIDDEN // 4, split=2)
        for sums, outs in ((HIDDEN, 4), (4 * HIDDEN, 1))
    )
    assert all(way.fits(multiprocessors=4) for way in ways)
    monkeypatch.setattr(ops, "spreads", lambda *_: ways)
    assert_is_fast("lstm", layer_inputs("lstm", Projected, time=2))


def test_more_lanes_than_a_kernel_takes_come_one_part_after_another():
    assert_is_fast("rnn", layer_inputs("rnn", Projected, batch=2 * LANES, time=2))


@pytest.mark.parametrize(
    ("cell", "batch", "peers"),
    [("gru", 64, 1), ("lstm", 64, 1), ("rnn", 64, 1), ("gru", 128, 2), ("lstm", 64, 2)],
)
def test_it_lowers_for_cuda(cell, batch, peers):
    layer = partial(ops.recur, cell, Machine(peers=peers))
    shapes = jax.eval_shape(partial(layer_inputs, cell, Projected, batch, hidden=1024, time=100))
    program = jax.jit(partial(value_and_grads, layer)).trace(*shapes)
    lowered = program.lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("custom_call @mosaic_gpu") == 2  # forwards and backwards


@pytest.mark.parametrize("gates", [1, 3, 4])
@pytest.mark.parametrize("multiprocessors", [114, 132])  # an H100 on PCIe; an H100, an H200
def test_every_multiple_of_128_up_to_1024_fits(gates, multiprocessors):
    for hidden in range(128, 1025, 128):
        for way in spreads(hidden, gates, multiprocessors):
            assert way.fits(multiprocessors)
            assert way.ctas * way.units == hidden


HOPPER = SimpleNamespace(
    platform="gpu", device_kind="NVIDIA H200", compute_capability="9.0", core_count=132
)
OTHERS = {
    "a CPU": [SimpleNamespace(platform="cpu", device_kind="cpu")],
    "Blackwell": [SimpleNamespace(**vars(HOPPER) | {"compute_capability": "10.0"})],
    "two GPUs": [HOPPER, HOPPER],
}

CONFIG = ModelConfig(
    cell="gru", hidden=HIDDEN, layers=2, embed=4, dtype="bfloat16", recurrence="persistent"
)


def run_network(config):
    params = params_of(config, VOCAB)
    return CharRNN(config, VOCAB).run(params, tokens_of(VOCAB, LANES, 2), carry_of(config, LANES))


def test_the_network_runs_on_it(monkeypatch):
    layer, ran = Layer("gru", HIDDEN, "bfloat16", LANES), []
    monkeypatch.setattr(ops, "supports", lambda asked: "" if asked == layer else "another layer")
    monkeypatch.setattr(ops, "machine", lambda: ran.append(layer) or TWO_CTAS)
    got = run_network(CONFIG)
    assert ran == [layer] * CONFIG.layers
    assert distance(got, run_network(replace(CONFIG, recurrence="xla"))) < 0.01


def test_parameters_are_initialized_without_a_gpu():
    init_params(CONFIG, VOCAB, jax.random.key(0))


def assert_refused(config, batch, named):
    with pytest.raises(InputError, match=named) as error:
        resolve(config, batch)
    assert "--config.model.recurrence=fast" in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("devices", OTHERS)
def test_other_devices_are_refused(devices, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: OTHERS[devices])
    assert_refused(CONFIG, LANES, named="Hopper")


def test_layers_that_the_kernels_cannot_run_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [HOPPER])
    assert ops.machine() == Machine(multiprocessors=132)
    assert resolve(CONFIG, 2 * LANES).implementation == "persistent"
    assert_refused(replace(CONFIG, dtype="float32"), LANES, named="float32")
    assert_refused(CONFIG, 96, named="there are 96")
    assert_refused(replace(CONFIG, cell="lstm", hidden=2048), LANES, named="2048 units")
    monkeypatch.setitem(CELLS, "other", CELLS["gru"])
    assert "other" in ops.supports(Layer("other", HIDDEN, "bfloat16", LANES))


def test_a_layer_that_does_not_fit_is_refused_without_being_asked():
    inputs = jax.eval_shape(partial(layer_inputs, "lstm", Projected, hidden=2048))
    with pytest.raises(InputError, match="hidden=2048"):
        jax.eval_shape(partial(ops.recur, "lstm", Machine()), *inputs)
