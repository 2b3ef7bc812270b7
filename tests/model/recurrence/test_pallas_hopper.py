"""Invariant 5 for the persistent kernels, as far as a machine without a GPU can test it.

They run in Pallas' interpret mode, all CTAs in parallel, with barriers in global memory, and
are lowered for CUDA, which rejects layouts, copies and sizes that a GPU does not have. They
are not in the suite of `test_invariants`, whose layers have a few units, mostly in float32:
these kernels take multiples of 64 sequences and 128 units in bfloat16 only, and a case takes
ten seconds to interpret. So each cell has one case here, against XLA's loop, which the suite
holds to the reference.
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
from charjax.model.recurrence import xla
from charjax.model.recurrence.api import resolve
from charjax.model.recurrence.base import Layer, Operands, Projected, Table, Weights
from charjax.model.recurrence.pallas_hopper import ops
from charjax.model.recurrence.pallas_hopper.ops import LaunchConfig
from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE, Tiling, choose_tilings
from tests.model.small import carry_of, distance, like, normal, params_of, tokens_of

VOCAB, TIME, HIDDEN = 7, 3, 128
TWO_CTAS = LaunchConfig(num_sms=2, interpret=InterpretGPUParams())


def layer_inputs(cell, kind, batch=BATCH_TILE, hidden=HIDDEN, time=TIME):
    gates, states = CELLS[cell].gates * hidden, CELLS[cell].states
    bias = normal(2, hidden) if CELLS[cell].reset_after else None
    weights = Weights(normal(1, hidden, gates) / hidden**0.5, bias)
    carry = tuple(normal(3, states, batch, hidden))
    if kind is Table:
        return Table(normal(0, gates, VOCAB), tokens_of(VOCAB, batch, time).T), weights, carry
    return Projected(normal(0, gates, time, batch)), weights, carry


def value_and_grads(layer, inputs, weights, carry, resets=None):
    """Outputs and last carry, and their gradients in the input gates, weights and carry."""

    def run(igates, weights, carry):
        return layer(Operands(inputs._replace(igates=igates), weights, carry, resets))

    value, vjp = jax.vjp(run, inputs.igates, weights, carry)
    return value, vjp(like(value, 4))


def assert_equals_xla(cell, inputs):
    got = value_and_grads(partial(ops.recurrence, cell, TWO_CTAS), *inputs)
    want = value_and_grads(partial(xla.run, cell, jnp.bfloat16), *inputs)
    # Another order of sums may round a state or a gradient to the neighbouring bfloat16.
    assert distance(got, want) < 0.01
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}


def test_value_and_gradient_equal_those_of_xla():
    assert_equals_xla("gru", layer_inputs("gru", Table))


def random_resets(batch, time):
    return jax.random.bernoulli(jax.random.key(0), 0.3, (time, batch))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_resets_are_those_of_xla(cell):
    batch = 2 * BATCH_TILE if cell == "lstm" else BATCH_TILE
    layer, resets = layer_inputs(cell, Projected, batch, time=2), random_resets(batch, 2)
    assert_equals_xla(cell, (*layer, resets))


def test_split_k_computes_the_same_sums(monkeypatch):
    tilings = tuple(
        Tiling(HIDDEN, k, outputs, units=HIDDEN // 4, split_k=2)
        for k, outputs in ((HIDDEN, 4), (4 * HIDDEN, 1))
    )
    assert all(tiling.fits(num_sms=4) for tiling in tilings)
    monkeypatch.setattr(ops, "choose_tilings", lambda *_: tilings)
    assert_equals_xla("lstm", layer_inputs("lstm", Projected, time=2))


def test_a_larger_batch_runs_tile_by_tile():
    assert_equals_xla("rnn", layer_inputs("rnn", Projected, batch=2 * BATCH_TILE, time=2))


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize(
    ("cell", "batch", "cluster"),
    [("gru", 64, 1), ("lstm", 64, 1), ("rnn", 64, 1), ("gru", 128, 2), ("lstm", 64, 2)],
)
def test_it_lowers_for_cuda(cell, batch, cluster, with_resets):
    layer = partial(ops.recurrence, cell, LaunchConfig(cluster=cluster))
    shapes = jax.eval_shape(partial(layer_inputs, cell, Projected, batch, hidden=1024, time=100))
    if with_resets:
        shapes = (*shapes, jax.ShapeDtypeStruct((100, batch), bool))
    program = jax.jit(partial(value_and_grads, layer)).trace(*shapes)
    lowered = program.lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("custom_call @mosaic_gpu") == 2  # forward and backward


@pytest.mark.parametrize("gates", [1, 3, 4])
@pytest.mark.parametrize("num_sms", [114, 132])  # H100 PCIe; H100 SXM and H200
def test_every_multiple_of_128_up_to_1024_has_a_tiling(gates, num_sms):
    for hidden in range(128, 1025, 128):
        for tiling in choose_tilings(hidden, gates, num_sms):
            assert tiling.fits(num_sms)
            assert tiling.ctas * tiling.units == hidden


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
    return CharRNN(config, VOCAB).run(
        params, tokens_of(VOCAB, BATCH_TILE, 2), carry_of(config, BATCH_TILE)
    )


def test_the_network_runs_on_it(monkeypatch):
    layer, launched = Layer("gru", HIDDEN, "bfloat16", BATCH_TILE), []

    def launch_config():
        launched.append(TWO_CTAS)
        return TWO_CTAS

    monkeypatch.setattr(ops, "supports", lambda asked: "" if asked == layer else "another layer")
    monkeypatch.setattr(ops, "launch_config", launch_config)
    got = run_network(CONFIG)
    assert len(launched) == CONFIG.layers
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
    assert_refused(CONFIG, BATCH_TILE, named="Hopper")


def test_layers_that_the_kernels_cannot_run_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [HOPPER])
    assert ops.launch_config() == LaunchConfig(num_sms=132)
    assert resolve(CONFIG, 2 * BATCH_TILE).implementation == "persistent"
    assert_refused(replace(CONFIG, dtype="float32"), BATCH_TILE, named="float32")
    assert_refused(CONFIG, 96, named="not 96")
    assert_refused(replace(CONFIG, cell="lstm", hidden=2048), BATCH_TILE, named="hidden=2048")
    monkeypatch.setitem(CELLS, "other", CELLS["gru"])
    assert "other" in ops.supports(Layer("other", HIDDEN, "bfloat16", BATCH_TILE))


def test_the_op_raises_for_a_layer_without_a_tiling():
    inputs = jax.eval_shape(partial(layer_inputs, "lstm", Projected, hidden=2048))
    with pytest.raises(ValueError, match="lstm with 2048 units"):
        jax.eval_shape(partial(ops.recurrence, "lstm", LaunchConfig()), Operands(*inputs))
