"""Devices, microbatches and blocks change how a batch is computed, not the result."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charjax.config import Config, DataConfig
from charjax.data.batches import TokenSplit, make_batches
from charjax.errors import InputError
from charjax.inference.scoring import evaluate
from charjax.runtime.sharding import (
    all_devices,
    batch_sharding,
    data_mesh,
    local_copy,
    process_rows,
    shard,
    shard_local,
)
from charjax.train.backends import make_backend, microbatch_size
from charjax.train.loss import DropoutKeys, accumulate, make_loss_and_grad, make_total_nats
from charjax.train.optimizer import make_optimizer
from charjax.train.step import repeat
from charjax.train.train_state import init_state

from .tiny import VOCAB, config_of, first_state, random_batch, stacked, step_of

pytestmark = pytest.mark.usefixtures("eight_devices")

OF_ROWS = {"dropout": 0.3, "dropout_in": 0.1}
OF_WEIGHTS = {"dropout_recurrent": 0.2, "dropout_embed": 0.1}
DROPOUT = OF_ROWS | OF_WEIGHTS
STEPS = range(10)


def some_keys() -> DropoutKeys:
    return DropoutKeys(jax.random.split(jax.random.key(0), 8), jax.random.key(1))


def losses_of(config: Config, boundary_id: int | None = None, steps: range = STEPS) -> np.ndarray:
    """Over all devices."""
    optimizer = make_optimizer(config.optim, config.train.max_steps)
    backend = make_backend(config, VOCAB, optimizer, boundary_id=boundary_id)
    _, metrics = backend.run(
        backend.place(init_state(config, VOCAB, optimizer)), stacked(random_batch, steps)
    )
    return np.asarray(metrics.loss)


@functools.cache
def losses_on_one_device(
    config: Config, boundary_id: int | None = None, steps: range = STEPS
) -> np.ndarray:
    run = jax.jit(repeat(step_of(config, boundary_id)))
    return np.asarray(run(first_state(config), stacked(random_batch, steps))[1].loss)


@pytest.mark.parametrize(
    ("cell", "model", "parallel"),
    [
        ("gru", {"remat": 2}, {}),
        ("lstm", {"remat": 8}, {}),
        ("gru", {}, {"accumulate": 4}),
        ("lstm", {"remat": 4}, {"accumulate": 2}),
    ],
)
def test_blocks_and_microbatches_change_nothing_but_rounding(cell, model, parallel):
    # Either kind of dropout in blocks and in microbatches; one takes half as long to compile.
    dropout = OF_ROWS if cell == "gru" else OF_WEIGHTS
    whole = config_of(model={**dropout, "cell": cell})
    cut = config_of(model={**dropout, "cell": cell, **model}, parallel=parallel)
    np.testing.assert_allclose(losses_on_one_device(cut), losses_on_one_device(whole), rtol=1e-6)


def test_documents_in_blocks_microbatches_and_on_devices_change_nothing_but_rounding():
    train = {"scheduled_sampling": 0.5, "scheduled_ramp": 4}
    model = {**DROPOUT, "cell": "rnn"}
    whole = config_of(model=model, train=train)
    want = losses_on_one_device(whole, boundary_id=3)
    assert all((random_batch(step).inputs[:, 1:] == 3).any() for step in STEPS)  # starts inside
    cut = config_of(model={**model, "remat": 4}, train=train, parallel={"accumulate": 2})
    np.testing.assert_allclose(losses_on_one_device(cut, boundary_id=3), want, rtol=1e-6)
    np.testing.assert_allclose(losses_of(whole, boundary_id=3), want, rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["muon", "schedule_free"])
def test_optimizers_on_eight_devices_are_those_on_one(optimizer):
    config = config_of(model={"cell": "rnn"}, optim={"name": optimizer, "weight_decay": 0.1})
    np.testing.assert_allclose(losses_of(config), losses_on_one_device(config), rtol=1e-6)


def test_microbatches_on_eight_devices_are_the_whole_batch():
    def config(accumulate: int) -> Config:
        return config_of(
            model={**DROPOUT, "cell": "rnn"},
            data={"batch_size": 16},
            parallel={"backend": "pmap", "accumulate": accumulate},
        )

    def batch(step):
        return type(random_batch(0))(
            *map(np.concatenate, zip(random_batch(step), random_batch(step + 99), strict=True))
        )

    results = []
    for chosen in (config(1), config(2)):
        optimizer = make_optimizer(chosen.optim, chosen.train.max_steps)
        devices = make_backend(chosen, VOCAB, optimizer)
        state = devices.place(init_state(chosen, VOCAB, optimizer))
        state, metrics = devices.run(state, stacked(batch, STEPS))
        results.append((np.asarray(metrics.loss), jax.device_get(devices.to_global(state).carry)))
    (whole, whole_carry), (parts, parts_carry) = results
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), parts_carry, whole_carry)


def test_the_loss_of_last_targets_is_the_same_in_blocks():
    def nats(remat: int) -> float:
        config = config_of(data={"targets": "last", "batching": "windows"}, model={"remat": remat})
        batch = random_batch(0)
        last = batch._replace(mask=batch.mask & (np.arange(8) == 7))
        state = first_state(config)
        keys = some_keys()
        total = jax.jit(make_total_nats(config, VOCAB))
        return float(total(state.params, state.carry, last, keys)[0])

    assert nats(4) == pytest.approx(nats(0), rel=1e-6)


def test_blocks_bound_the_memory_of_a_long_sequence():
    def temporary_bytes(remat: int) -> int:
        config = config_of(model={"remat": remat, "hidden": 32})
        total = make_total_nats(config, VOCAB)
        state = first_state(config)
        long = jax.tree.map(lambda x: np.tile(x, (1, 64)) if x.ndim == 2 else x, random_batch(0))
        keys = some_keys()
        gradient = jax.jit(jax.grad(lambda *a: total(*a)[0]))
        program = gradient.lower(state.params, state.carry, long, keys).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(16) < temporary_bytes(0) / 4


def test_of_one_device_a_batch_that_does_not_fit_names_the_accumulation_alone(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"a multiple of config\.parallel\.accumulate=3; .*is 9$"):
        microbatch_size(config_of(parallel={"accumulate": 3}))


def test_every_sequence_is_in_one_microbatch():
    config = config_of()
    state = first_state(config)
    batch, keys = random_batch(0), some_keys()
    carry = jax.tree.map(
        lambda c: jax.random.normal(jax.random.key(1), c.shape), state.carry
    )  # so that the sequences differ
    loss_and_grad = make_loss_and_grad(make_total_nats(config, VOCAB))
    arguments = (state.params, carry, jax.tree.map(jax.numpy.asarray, batch), keys)
    whole = jax.jit(loss_and_grad)(*arguments, 64)
    parts = jax.jit(accumulate(loss_and_grad, 4))(*arguments, 64)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts, whole)


@given(
    batching=st.sampled_from(["stream", "windows", "sliding"]),
    partial=st.booleans(),
    step=st.integers(0, 40),
    cut=st.integers(0, 8),
)
@settings(max_examples=40)
def test_the_rows_of_all_processes_are_the_batch(batching, partial, step, cut):
    keep_partial = partial and batching != "stream"
    config = DataConfig(batching=batching, batch_size=8, seq_len=4, keep_partial=keep_partial)
    ids = np.arange(300, dtype=np.int32)
    batches = make_batches(config, TokenSplit(ids, np.array([0])), seed=1)
    whole = batches(step)
    halves = batches(step, slice(0, cut)), batches(step, slice(cut, 8))
    for wanted, one, other in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(np.concatenate([one, other]), wanted)


def test_sharded_arrays_are_the_host_arrays():
    sharding = batch_sharding(data_mesh(), axis=1)
    x = np.arange(48.0).reshape(2, 8, 3)
    for placed in (shard(x, sharding), shard_local(x[:, process_rows(8)], sharding)):
        np.testing.assert_array_equal(placed, x)
        assert len({shard.device for shard in placed.addressable_shards}) == 8
    assert local_copy(jax.device_put(x, all_devices()[3])).devices() == {all_devices()[3]}


def test_a_text_is_scored_on_all_devices_as_on_one(monkeypatch):
    config = config_of().model
    params = first_state(config_of()).params
    ids = np.random.default_rng(0).integers(VOCAB, size=20_000).astype(np.int32)
    on_all = evaluate.char_nats(config, params, ids)
    monkeypatch.setattr(jax, "device_count", lambda: 65)  # more than a text has parts
    np.testing.assert_allclose(on_all, evaluate.char_nats(config, params, ids), rtol=1e-5)
