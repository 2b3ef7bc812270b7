"""Invariant 5 for the persistent kernels, as far as a machine without a GPU can test it.

They run in Pallas' interpret mode, all CTAs in parallel, with barriers in global memory, and
are lowered for CUDA, which rejects layouts, copies and sizes that a GPU does not have. They
are not in the suite of `test_invariants`, whose layers have a few units, mostly in float32:
these kernels take multiples of 128 units in bfloat16 only, and a case takes ten seconds to
interpret. So each cell has one case here, against XLA's loop, which the suite holds to the
reference; `-m slow` runs every cell with every batch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from charjax.config import ModelConfig
from charjax.errors import InputError
from charjax.model.cells import CELLS
from charjax.model.network import CharRNN, init_params
from charjax.model.recurrence import xla
from charjax.model.recurrence.api import resolve
from charjax.model.recurrence.base import Layer, Operands, Projected, Table, Weights
from charjax.model.recurrence.pallas_hopper import ops, plan
from charjax.model.recurrence.pallas_hopper.plan import LaunchConfig, make_plan
from charjax.model.recurrence.pallas_hopper.tiling import BATCH_TILE, Tiling, choose_tilings
from tests.model.small import UNOPTIMIZED, carry_of, distance, like, normal, params_of, tokens_of

try:
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
except ImportError:  # private to jax
    InterpretGPUParams = None

VOCAB, TIME, HIDDEN = 7, 3, 128
TWO_CTAS = LaunchConfig(num_sms=2, interpret=InterpretGPUParams and InterpretGPUParams())
# Two batch groups, each with the tiling of TWO_CTAS.
TWO_GROUPS = replace(TWO_CTAS, num_sms=4, batch_groups=2)
needs_interpreter = pytest.mark.skipif(
    InterpretGPUParams is None, reason="this jax has no jax._src...InterpretGPUParams"
)


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


def compiled(function, *first):
    """A function whose first arguments are given."""
    return jax.jit(partial(function, *first), compiler_options=UNOPTIMIZED)


def run_compiled(cell, launch, inputs):
    return compiled(value_and_grads, partial(ops.run_padded, cell, launch))(*inputs)


def assert_equals_xla(cell, inputs, launch=TWO_CTAS):
    got = run_compiled(cell, launch, inputs)
    want = compiled(value_and_grads, partial(xla.run, cell, jnp.bfloat16))(*inputs)
    # Another order of sums may round a state or a gradient to the neighbouring bfloat16.
    assert distance(got, want) < 0.01
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}


@needs_interpreter
def test_value_and_gradient_equal_those_of_xla():
    assert_equals_xla("gru", layer_inputs("gru", Table))


def random_resets(batch, time):
    return jax.random.bernoulli(jax.random.key(0), 0.3, (time, batch))


@needs_interpreter
def test_resets_are_those_of_xla():
    assert_equals_xla("gru", (*layer_inputs("gru", Table, 40, time=2), random_resets(40, 2)))


@needs_interpreter
@pytest.mark.slow
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("batch", [1, 40, 64, 100, 128, 256])
@pytest.mark.parametrize("kind", [Table, Projected])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_any_batch_equals_that_of_xla(cell, kind, batch, with_resets):
    resets = random_resets(batch, TIME) if with_resets else None
    assert_equals_xla(cell, (*layer_inputs(cell, kind, batch), resets))


def choose_split_k(monkeypatch, gates):
    tilings = tuple(
        Tiling(HIDDEN, k, outputs, units=HIDDEN // 4, split_k=2)
        for k, outputs in ((HIDDEN, gates), (gates * HIDDEN, 1))
    )
    assert all(tiling.fits(num_sms=4) for tiling in tilings)
    monkeypatch.setattr(plan, "choose_tilings", lambda *_: tilings)


@needs_interpreter
def test_split_k_computes_the_same_sums(monkeypatch):
    choose_split_k(monkeypatch, gates=4)
    layer = layer_inputs("lstm", Projected, time=2)
    assert_equals_xla("lstm", (*layer, random_resets(BATCH_TILE, 2)))


@needs_interpreter
def test_a_larger_batch_runs_tile_by_tile_and_the_last_tile_is_padded():
    layer = layer_inputs("rnn", Projected, batch=100, time=2)
    assert_equals_xla("rnn", (*layer, random_resets(100, 2)))


@needs_interpreter
def test_the_tiles_of_a_launch_take_turns(monkeypatch):
    choose_split_k(monkeypatch, gates=1)
    layer = layer_inputs("rnn", Projected, batch=100, time=3)
    assert_equals_xla("rnn", (*layer, random_resets(100, 3)), replace(TWO_CTAS, batch_tiles=2))


def assert_has_the_bits_of_tiles_apart(cell, launch, inputs):
    together, apart = (run_compiled(cell, how, inputs) for how in (launch, TWO_CTAS))
    assert distance(together[0], apart[0]) == 0
    # XLA's weight gradients add the rows of padding, too, in another order.
    assert distance(together[1], apart[1]) < 1e-5


@needs_interpreter
def test_batch_groups_have_the_bits_of_launches_one_after_another(monkeypatch):
    choose_split_k(monkeypatch, gates=1)
    layer = layer_inputs("rnn", Projected, batch=100, time=2)
    resets = random_resets(100, 2)
    assert_has_the_bits_of_tiles_apart("rnn", TWO_GROUPS, (*layer, resets))


@needs_interpreter
@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "batch_tiles", "batch_groups", "with_resets", "split_k"),
    [
        (100, 4, 1, True, False),
        (128, 2, 1, False, True),
        (192, 2, 1, False, False),
        (192, 4, 1, True, True),
        (256, 4, 1, False, False),
        (100, 1, 2, True, False),
        (128, 1, 2, False, True),
        (192, 1, 2, True, False),
        (192, 1, 3, False, False),
        (256, 2, 2, False, True),
    ],
)
@pytest.mark.parametrize(("cell", "time"), [("gru", 5), ("lstm", 3)])
def test_tiles_in_one_launch_have_the_bits_of_tiles_in_their_own(
    cell, time, batch, batch_tiles, batch_groups, with_resets, split_k, monkeypatch
):
    """192 rows in launches of two tiles are padded to 256."""
    if split_k:
        choose_split_k(monkeypatch, CELLS[cell].gates)
    resets = random_resets(batch, time) if with_resets else None
    inputs = (*layer_inputs(cell, Projected, batch, time=time), resets)
    launch = LaunchConfig(2 * batch_groups, 1, batch_tiles, batch_groups, TWO_CTAS.interpret)
    assert_has_the_bits_of_tiles_apart(cell, launch, inputs)


def plan_at_1024_units(batch, **fields):
    return make_plan(1024, 3, batch, LaunchConfig(**fields))


BATCHES = (1, 64, 65, 256, 257, 320, 512, 600)


def test_the_tiles_are_spread_evenly_over_the_fewest_launches():
    plans = [plan_at_1024_units(batch, batch_tiles=4, batch_groups=1) for batch in BATCHES]
    assert [found.forward.batch_tiles for found in plans] == [1, 1, 2, 4, 3, 3, 4, 4]
    plans = [plan_at_1024_units(batch, batch_tiles=2) for batch in BATCHES]
    assert [found.rows // BATCH_TILE for found in plans] == [1, 1, 2, 4, 8, 8, 8, 12]


def test_batch_groups_are_those_of_the_least_estimated_time():
    plans = [plan_at_1024_units(batch) for batch in BATCHES]
    assert [found.forward.batch_groups for found in plans] == [1, 1, 2, 2, 2, 2, 2, 2]
    assert [found.launches for found in plans] == [1, 1, 1, 2, 3, 3, 4, 5]
    assert plan_at_1024_units(256, num_sms=114).forward.batch_groups == 1  # of 32 units: no
    assert plan_at_1024_units(256, cluster=2).forward.batch_groups == 1


@pytest.mark.parametrize("gates", [1, 3, 4])
@pytest.mark.parametrize("num_sms", [114, 132])
def test_all_ctas_of_a_plan_are_resident_and_its_padding_needs_no_other_plan(gates, num_sms):
    for hidden in range(128, 1025, 128):
        for batch in (1, 100, 192, 300, 512, 2048):
            found = make_plan(hidden, gates, batch, LaunchConfig(num_sms))
            forward, backward = found.forward, found.backward
            assert forward.fits(num_sms)
            assert backward.fits(num_sms)
            assert (forward.units, forward.rows) == (backward.units, backward.rows)
            assert found.rows - forward.rows < batch <= found.rows
            forced = LaunchConfig(num_sms, batch_groups=forward.batch_groups)
            assert make_plan(hidden, gates, found.rows, forced) == found


@pytest.mark.parametrize("fields", [{"batch_tiles": 2}, {"batch_groups": 2}])
def test_clusters_with_several_batch_tiles_are_refused(fields):
    with pytest.raises(ValueError, match="one batch tile"):
        LaunchConfig(cluster=2, **fields)


@pytest.mark.parametrize("kind", [Table, Projected])
def test_padded_rows_are_zeros_without_resets(kind):
    layer = layer_inputs("gru", kind, batch=3)
    operands = ops._pad_batch(Operands(*layer, resets=jnp.ones((TIME, 3), bool)), 2)
    tokens_or_gates = operands.inputs.tokens if kind is Table else operands.inputs.igates
    for array, axis in ((tokens_or_gates, -1), (operands.carry[0], 0), (operands.resets, -1)):
        assert array.shape[axis] == 5
        assert not jnp.moveaxis(array, axis, 0)[3:].any()


def test_a_full_tile_is_not_padded():
    shapes = jax.eval_shape(partial(layer_inputs, "gru", Projected, hidden=1024))
    traced = jax.jit(partial(ops.run_padded, "gru", LaunchConfig())).trace(Operands(*shapes))
    assert " pad[" not in str(traced.jaxpr)


LOWERED = {  # (cell, batch, launch): with resets, in the suite; the others are slow
    ("gru", 64, LaunchConfig()): False,
    ("lstm", 40, LaunchConfig()): True,
    ("rnn", 64, LaunchConfig()): True,
    ("gru", 100, LaunchConfig(cluster=2)): True,
    ("lstm", 64, LaunchConfig(cluster=2)): False,
    ("rnn", 128, LaunchConfig(batch_tiles=2, batch_groups=1)): True,
    ("gru", 256, LaunchConfig(batch_tiles=4, batch_groups=1)): None,
    ("lstm", 256, LaunchConfig(batch_tiles=4, batch_groups=1)): None,
    ("gru", 128, LaunchConfig()): False,
    ("lstm", 128, LaunchConfig()): True,
    ("gru", 256, LaunchConfig()): None,
    ("lstm", 256, LaunchConfig()): None,
    ("gru", 256, LaunchConfig(batch_tiles=2)): None,
    ("lstm", 256, LaunchConfig(batch_tiles=2)): None,
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
    layer = partial(ops.run_padded, cell, launch)
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


@needs_interpreter
def test_the_network_runs_on_it(monkeypatch):
    layer, launched = Layer("gru", HIDDEN, "bfloat16", ROWS), []

    def launch_config():
        launched.append(TWO_CTAS)
        return TWO_CTAS

    monkeypatch.setattr(ops, "supports", lambda asked: "" if asked == layer else "another layer")
    monkeypatch.setattr(ops, "launch_config", launch_config)
    got = run_network(CONFIG)
    assert len(launched) == CONFIG.layers
    assert distance(got, run_network(replace(CONFIG, recurrence="xla"))) < 0.01


def network_gradients(config, batch, time):
    """Logits and last carry of a network, and their gradients in the parameters and the carry."""
    tokens, network = tokens_of(VOCAB, batch, time), CharRNN(config, VOCAB)
    inputs = params_of(config, VOCAB), carry_of(config, batch)
    value, vjp = jax.vjp(lambda params, carry: network.run(params, tokens, carry), *inputs)
    return value, vjp(like(value, 4))


@needs_interpreter
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


def assert_refused(config, batch, named):
    with pytest.raises(InputError, match=named) as error:
        resolve(config, batch)
    assert "--config.model.recurrence=fast" in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("devices", OTHERS)
def test_other_devices_are_refused(devices, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: OTHERS[devices])
    assert_refused(CONFIG, BATCH_TILE, named="Hopper")


FAST = replace(CONFIG, recurrence="fast")


@pytest.mark.parametrize("batch", [1, 40, 64, 100, 128, 256])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_fast_is_persistent_on_one_hopper_gpu(cell, batch, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [HOPPER])
    resolution = resolve(replace(FAST, cell=cell, layers=3), batch)
    assert resolution == ("persistent", "the fastest here")
    assert resolve(FAST, batch, saved="xla") == ("xla", "as the saved run")


@pytest.mark.parametrize("devices", sorted(OTHERS.keys() - {"a CPU"}))
def test_fast_is_xla_on_other_gpus_and_says_why(devices, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: OTHERS[devices])
    found = f"{len(OTHERS[devices])} x {OTHERS[devices][0].device_kind}"
    why = f"persistent refuses: needs one NVIDIA Hopper GPU (H100, H200), found {found}"
    assert resolve(FAST, BATCH_TILE) == ("xla", why)


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"dtype": "float32"}, "needs config.model.dtype=bfloat16"), ({"hidden": 200}, "hidden=200")],
)
def test_fast_is_xla_where_the_kernels_do_not_fit_the_model(fields, named, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [HOPPER])
    chosen = resolve(replace(FAST, **fields), BATCH_TILE)
    assert chosen.implementation == "xla"
    assert named in chosen.reason


def test_layers_that_the_kernels_cannot_run_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [HOPPER])
    assert ops.launch_config() == LaunchConfig(num_sms=132)
    assert resolve(CONFIG, 2 * BATCH_TILE).implementation == "persistent"
    assert_refused(replace(CONFIG, dtype="float32"), BATCH_TILE, named="float32")
    assert_refused(replace(CONFIG, cell="lstm", hidden=2048), BATCH_TILE, named="hidden=2048")
    monkeypatch.setitem(CELLS, "other", CELLS["gru"])
    assert "other" in ops.supports(Layer("other", HIDDEN, "bfloat16", BATCH_TILE))


def test_the_op_raises_for_a_layer_without_a_tiling():
    inputs = jax.eval_shape(partial(layer_inputs, "lstm", Projected, hidden=2048))
    with pytest.raises(ValueError, match="lstm with 2048 units"):
        jax.eval_shape(partial(ops.recurrence, "lstm", LaunchConfig()), Operands(*inputs))
