"""Invariant 5 for the persistent kernels, as far as a machine without a GPU can test it.

They run in Pallas' interpret mode, all CTAs in parallel, with barriers in global memory, and
are lowered for CUDA, which rejects layouts, copies and sizes that a GPU does not have. They
are not in the suite of `test_invariants`, whose layers have a few units, mostly in float32:
these kernels take multiples of 128 units in bfloat16 only, and a case takes seconds to interpret:
for each CTA and tile in turn, while more passes cost little. So there is a case of a GRU and one of
an LSTM against XLA's loop, which the suite holds to the reference, and one for each way to divide a
batch, of a vanilla RNN; `-m slow` runs every cell with every batch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from charjax.config import ModelConfig
from charjax.model.cells import CELLS
from charjax.model.network import CharRNN, init_params
from charjax.model.recurrence import xla
from charjax.model.recurrence.api import resolve
from charjax.model.recurrence.base import Inputs, Layer, Operands
from charjax.model.recurrence.pallas_hopper import ops, plan
from charjax.model.recurrence.pallas_hopper.plan import LaunchConfig, make_plan
from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE, Tiling
from tests.model.recurrence.implementations import VOCAB, Size, random_layer, value_and_grads
from tests.model.small import UNOPTIMIZED, carry_of, distance, like, normal, params_of, tokens_of

TIME, HIDDEN = 3, 128
TWO_CTAS = LaunchConfig(num_sms=2)


def layer_inputs(cell, kind, batch=BATCH_TILE, hidden=HIDDEN, time=TIME):
    return random_layer(cell, kind, Size(batch, time, hidden))


def compiled(function, *first):
    """A function whose first arguments are given."""
    return jax.jit(partial(function, *first), compiler_options=UNOPTIMIZED)


def run_compiled(cell, launch, inputs):
    return compiled(value_and_grads, partial(ops.run_with, launch, cell))(*inputs)


def assert_equals_xla(cell, inputs, launch=TWO_CTAS):
    got = run_compiled(cell, launch, inputs)
    want = compiled(value_and_grads, partial(xla.run, cell, jnp.bfloat16))(*inputs)
    # Another order of sums may round a state or a gradient to the neighbouring bfloat16.
    assert distance(got, want) < 0.01
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}


@pytest.mark.usefixtures("interpreted")
def test_value_and_gradient_equal_those_of_xla():
    assert_equals_xla("gru", layer_inputs("gru", "table", batch=40))  # padded


def random_resets(batch, time):
    return jax.random.bernoulli(jax.random.key(0), 0.3, (time, batch))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.slow
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("batch", [1, 40, 64, 100, 128, 256])
@pytest.mark.parametrize("kind", ["table", "projected"])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_any_batch_equals_that_of_xla(cell, kind, batch, with_resets):
    resets = random_resets(batch, TIME) if with_resets else None
    assert_equals_xla(cell, (*layer_inputs(cell, kind, batch), resets))


def choose_split_k(monkeypatch, gates):
    units = HIDDEN // (2 if gates == 1 else 4)  # of as few CTAs as can be
    tilings = tuple(
        Tiling(HIDDEN, k, outputs, units, split_k=2)
        for k, outputs in ((HIDDEN, gates), (gates * HIDDEN, 1))
    )
    assert all(tiling.fits(num_sms=4) for tiling in tilings)
    monkeypatch.setattr(plan, "choose_tilings", lambda *_: tilings)


@pytest.mark.usefixtures("interpreted")
def test_split_k_and_resets_are_those_of_xla(monkeypatch):
    choose_split_k(monkeypatch, gates=4)
    layer = layer_inputs("lstm", "projected", time=2)
    assert_equals_xla("lstm", (*layer, random_resets(BATCH_TILE, 2)))


def assert_has_bits(got, want):
    """Of values and gradients; XLA's weight gradients may add the rows in another order."""
    (d_igates, d_weights, d_carry), (d_igates_want, d_weights_want, d_carry_want) = got[1], want[1]
    assert distance((got[0], d_igates, d_carry), (want[0], d_igates_want, d_carry_want)) == 0
    assert distance(d_weights, d_weights_want) < 1e-5


def rows_of(arguments, first, last):
    """Some batch rows of `layer_inputs`, resets and cotangents."""
    inputs, weights, carry, resets, (d_outputs, d_last) = arguments
    carry, d_last = (tuple(state[first:last] for state in states) for states in (carry, d_last))
    inputs = Inputs(inputs.igates[..., first:last])
    return inputs, weights, carry, resets[:, first:last], (d_outputs[..., first:last], d_last)


def joined(results):
    """Values and gradients of all rows; those of the weights are sums."""
    values, grads = zip(*results, strict=True)
    outputs, lasts = zip(*values, strict=True)
    igates, weights, carries = zip(*grads, strict=True)

    def join(states):
        return jax.tree.map(lambda *rows: jnp.concatenate(rows), *states)

    d_weights = jax.tree.map(lambda *parts: sum(parts), *weights)
    value = jnp.concatenate(outputs, -1), join(lasts)
    return value, (jnp.concatenate(igates, -1), d_weights, join(carries))


def quick_first(cases):
    """The first of these cases is in the suite, the others are slow."""
    first, *others = cases
    return [first, *(pytest.param(*case, marks=pytest.mark.slow) for case in others)]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("cell", "time", "batch", "split_k"),
    quick_first(
        (*layer, batch, split_k)
        for layer in (("rnn", 2), ("gru", 5), ("lstm", 3))
        for batch in (2 * BATCH_TILE, 200)
        for split_k in (False, True)
    ),
)
def test_passes_have_the_bits_of_one_tile_alone(cell, time, batch, split_k, monkeypatch):
    if split_k:
        choose_split_k(monkeypatch, CELLS[cell].gates)
    cotangents = normal(5, HIDDEN, time, batch), tuple(normal(6, CELLS[cell].states, batch, HIDDEN))
    layer = layer_inputs(cell, "projected", batch, time=time)
    rows = partial(rows_of, (*layer, random_resets(batch, time), cotangents))
    run = compiled(value_and_grads, partial(ops.run_with, TWO_CTAS, cell))
    tiles = [rows(first, first + BATCH_TILE) for first in range(0, batch, BATCH_TILE)]
    assert_has_bits(run(*rows(0, batch)), joined([run(*tile) for tile in tiles]))


DIVISIONS = [  # batch tiles in turn, batch groups, batch
    (2, 2, 200),
    (2, 2, 300),  # two passes; the last three tiles are padding
    (1, 2, 100),
    (1, 3, 192),
    (1, 2, 200),
    (2, 1, 128),
    (2, 1, 200),
    (4, 1, 100),
]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("cell", "time", "batch_tiles", "batch_groups", "batch", "split_k", "with_resets"),
    quick_first(
        (*layer, *division, split_k, with_resets)
        for layer in (("rnn", 2), ("gru", 5), ("lstm", 3))
        for division in DIVISIONS
        for split_k in (True, False)
        for with_resets in (True, False)
    ),
)
def test_batch_groups_and_tiles_in_turn_have_the_bits_of_passes(
    cell, time, batch_tiles, batch_groups, batch, split_k, with_resets, monkeypatch
):
    if split_k:
        choose_split_k(monkeypatch, CELLS[cell].gates)
    resets = random_resets(batch, time) if with_resets else None
    inputs = (*layer_inputs(cell, "projected", batch, time=time), resets)
    launch = LaunchConfig(2 * batch_groups, batch_tiles, batch_groups)
    assert_has_bits(run_compiled(cell, launch, inputs), run_compiled(cell, TWO_CTAS, inputs))


def plan_at_1024_units(batch, **fields):
    return make_plan(1024, 3, batch, LaunchConfig(**fields))


BATCHES = (1, 64, 65, 256, 257, 320, 512, 600)


def test_the_tiles_are_spread_evenly_over_the_fewest_passes():
    plans = [plan_at_1024_units(batch, batch_tiles=4, batch_groups=1) for batch in BATCHES]
    assert [found.forward.batch_tiles for found in plans] == [1, 1, 2, 4, 3, 3, 4, 4]
    plans = [plan_at_1024_units(batch, batch_tiles=2) for batch in BATCHES]
    assert [found.rows // BATCH_TILE for found in plans] == [1, 1, 2, 4, 8, 8, 8, 12]


def test_batch_groups_are_those_of_the_least_estimated_time():
    plans = [plan_at_1024_units(batch) for batch in BATCHES]
    assert [found.forward.batch_groups for found in plans] == [1, 1, 2, 2, 2, 2, 2, 2]
    assert plan_at_1024_units(256, num_sms=114).forward.batch_groups == 1  # of 32 units: no


def test_two_tiles_in_turn_save_passes_where_they_need_no_more_padding():
    plans = [plan_at_1024_units(batch) for batch in BATCHES]
    assert [found.forward.batch_tiles for found in plans] == [1, 1, 1, 2, 1, 1, 2, 1]
    assert [found.passes for found in plans] == [1, 1, 1, 1, 3, 3, 2, 5]
    assert plan_at_1024_units(256, num_sms=64).forward.batch_tiles == 2  # of 16 units
    of_32_units = make_plan(512, 3, 256, LaunchConfig(num_sms=16))
    assert (of_32_units.forward.units, of_32_units.forward.batch_tiles) == (32, 1)


def test_a_split_of_the_backward_pass_is_taken():
    tilings = [plan_at_1024_units(64, split_k=split_k).backward for split_k in (4, 8)]
    assert [tiling.split_k for tiling in tilings] == [4, 8]
    assert plan_at_1024_units(64, split_k=1) is None  # does not fit into shared memory


@pytest.mark.parametrize("gates", [1, 3, 4])
@pytest.mark.parametrize("num_sms", [114, 132])  # H100 PCIe; H100 SXM and H200
def test_all_ctas_of_a_plan_are_resident(gates, num_sms):
    for hidden in range(128, 1025, 128):
        for batch in (1, 100, 192, 300, 512, 2048):
            found = make_plan(hidden, gates, batch, LaunchConfig(num_sms))
            forward, backward = found.forward, found.backward
            assert forward.fits(num_sms)
            assert backward.fits(num_sms)
            assert (forward.units, forward.rows) == (backward.units, backward.rows)
            assert found.rows - forward.rows < batch <= found.rows


@pytest.mark.parametrize("kind", ["table", "projected"])
def test_padded_rows_are_zeros_without_resets(kind):
    layer = layer_inputs("gru", kind, batch=3)
    operands = ops._pad_batch(Operands(*layer, resets=jnp.ones((TIME, 3), bool)), 2)
    for array, axis in (
        (operands.inputs[kind == "table"], -1),
        (operands.carry[0], 0),
        (operands.resets, -1),
    ):
        assert array.shape[axis] == 5
        assert not jnp.moveaxis(array, axis, 0)[3:].any()


def test_a_full_tile_is_not_padded():
    shapes = jax.eval_shape(partial(layer_inputs, "gru", "projected", hidden=1024))
    traced = jax.jit(partial(ops.run_with, LaunchConfig(), "gru")).trace(Operands(*shapes))
    assert " pad[" not in str(traced.jaxpr)


LOWERED = {  # (cell, batch, launch): with resets, in the suite; the others are slow
    ("gru", 64, LaunchConfig()): False,
    ("lstm", 40, LaunchConfig()): None,
    ("rnn", 64, LaunchConfig()): True,
    ("gru", 256, LaunchConfig(batch_tiles=1)): None,
    ("lstm", 256, LaunchConfig(batch_tiles=1)): None,
    ("gru", 128, LaunchConfig()): None,
    ("lstm", 128, LaunchConfig()): None,
    ("gru", 256, LaunchConfig()): None,
    ("lstm", 256, LaunchConfig()): None,
    ("gru", 1024, LaunchConfig()): None,
    ("lstm", 1024, LaunchConfig()): True,
}


@pytest.mark.parametrize(
    ("cell", "batch", "launch", "with_resets"),
    [
        pytest.param(*layer, resets, marks=[] if resets is quick else pytest.mark.slow)
        for layer, quick in LOWERED.items()
        for resets in (False, True)
    ],
)
def test_it_lowers_for_cuda(cell, batch, launch, with_resets):
    layer = partial(ops.run_with, launch, cell)
    kind = "projected" if with_resets else "table"
    shapes = jax.eval_shape(partial(layer_inputs, cell, kind, batch, hidden=1024))
    if with_resets:
        shapes = (*shapes, jax.ShapeDtypeStruct((TIME, batch), bool))
    program = jax.jit(partial(value_and_grads, layer)).trace(*shapes)
    lowered = program.lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("custom_call @mosaic_gpu") == 2  # forward and backward


HOPPER = SimpleNamespace(
    platform="gpu", device_kind="NVIDIA H200", compute_capability="9.0", core_count=132
)


def gpu(kind, capability):
    return SimpleNamespace(platform="gpu", device_kind=kind, compute_capability=capability)


OTHERS = {
    "a CPU": [SimpleNamespace(platform="cpu", device_kind="cpu")],
    "Turing": [gpu("Tesla T4", "7.5")],
    "Ampere": [gpu("NVIDIA A100-SXM4-40GB", "8.0")],
    "Ada": [gpu("NVIDIA GeForce RTX 4090", "8.9")],
    "Blackwell": [gpu("NVIDIA B200", "10.0")],
    "AMD": [gpu("AMD Instinct MI300X", "gfx942")],
    "two Hopper GPUs": [HOPPER, HOPPER],
}

CONFIG = ModelConfig(
    cell="gru", hidden=HIDDEN, layers=2, embed=4, dtype="bfloat16", recurrence="persistent"
)


ROWS = 40  # not a full tile


def run_network(config):
    params = params_of(config, VOCAB)
    return CharRNN(config, VOCAB).run(params, tokens_of(VOCAB, ROWS, 2), carry_of(config, ROWS))


@pytest.mark.usefixtures("interpreted")
def test_the_network_runs_on_it(monkeypatch):
    config = replace(CONFIG, layers=1)
    layer, launched = Layer("gru", HIDDEN, "bfloat16", ROWS), []

    def launch_config():
        launched.append(TWO_CTAS)
        return TWO_CTAS

    monkeypatch.setattr(ops, "supports", lambda asked: "" if asked == layer else "another layer")
    monkeypatch.setattr(ops, "launch_config", launch_config)
    got = run_network(config)
    assert len(launched) == config.layers
    assert distance(got, run_network(replace(config, recurrence="xla"))) < 0.01


def network_gradients(config, batch, time):
    """Logits and last carry of a network, and their gradients in the parameters and the carry."""
    tokens, network = tokens_of(VOCAB, batch, time), CharRNN(config, VOCAB)
    inputs = params_of(config, VOCAB), carry_of(config, batch)
    value, vjp = jax.vjp(lambda params, carry: network.run(params, tokens, carry), *inputs)
    return value, vjp(like(value, 4))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "layers", "batch_tiles"),
    [(64, 1, 1), (64, 2, 1), (64, 3, 1), (128, 2, 1), (128, 2, 2), (256, 3, 1), (256, 2, 4)],
)
@pytest.mark.parametrize(("cell", "time"), [("gru", 5), ("lstm", 3)])
def test_layers_of_any_batch_equal_the_reference(
    cell, time, batch, layers, batch_tiles, monkeypatch
):
    """Values and gradients of `scan`, after odd numbers of steps."""
    launch = replace(TWO_CTAS, batch_tiles=batch_tiles)
    monkeypatch.setattr(ops, "supports", lambda _: "")
    monkeypatch.setattr(ops, "launch_config", lambda: launch)
    config = replace(CONFIG, cell=cell, layers=layers)
    got = network_gradients(config, batch, time)
    want = network_gradients(replace(config, recurrence="scan"), batch, time)
    assert distance(got, want) < 0.02  # at most 0.009 was found


def test_parameters_are_initialized_without_a_gpu():
    init_params(CONFIG, VOCAB, jax.random.key(0))


@pytest.mark.parametrize("devices", OTHERS)
def test_other_devices_are_refused(devices, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: OTHERS[devices])
    found = f"{len(OTHERS[devices])} x {OTHERS[devices][0].device_kind}"
    refusal = f"needs one NVIDIA Hopper GPU (H100, H200), found {found}"
    assert ops.supports(Layer("gru", HIDDEN, "bfloat16", BATCH_TILE)) == refusal


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (Layer("gru", HIDDEN, "float32", BATCH_TILE), "needs config.model.dtype=bfloat16"),
        (Layer("gru", 200, "bfloat16", BATCH_TILE), "hidden=200"),
        (Layer("lstm", 2048, "bfloat16", BATCH_TILE), "hidden=2048"),
    ],
)
def test_layers_that_the_kernels_cannot_run_are_refused(layer, named, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [HOPPER])
    assert ops.launch_config() == LaunchConfig(num_sms=132)
    assert named in ops.supports(layer)


@pytest.mark.parametrize("batch", [1, 40, 64, 100, 128, 256])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_fast_is_persistent_on_one_hopper_gpu(cell, batch, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [HOPPER])
    model = replace(CONFIG, cell=cell, layers=3, recurrence="fast")
    assert resolve(model, batch) == ("persistent", "the fastest here")


def test_the_op_raises_for_a_layer_without_a_tiling():
    inputs = jax.eval_shape(partial(layer_inputs, "lstm", "projected", hidden=200))
    with pytest.raises(ValueError, match="lstm with 200 units"):
        jax.eval_shape(partial(ops.run_with, LaunchConfig(), "lstm"), Operands(*inputs))
