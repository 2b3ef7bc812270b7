from __future__ import annotations

import jax
import numpy as np
import pytest

from charjax.config import Config
from charjax.errors import InputError
from charjax.train.optimizer import make_optimizer
from charjax.train.parallel import Backend, make_backend
from charjax.train.step import TrainState, init_state, repeat

from .tiny import VOCAB, assert_same_bits, config_of, random_batch, stacked, step_and_state

DISPATCHES = [range(0, 10), range(10, 20), range(20, 30)]
CONFIG = config_of(
    model={"dropout": 0.3, "dropout_in": 0.1}, optim={"ema": 0.9, "weight_decay": 0.01}
)
BACKENDS = ("jit", "pmap")


def backend_of(name: str, config: Config = CONFIG) -> Backend:
    from dataclasses import replace

    chosen = replace(config, parallel=replace(config.parallel, backend=name))
    return make_backend(chosen, VOCAB, make_optimizer(config.optim, config.train.max_steps))


def first_state(config: Config = CONFIG) -> TrainState:
    optimizer = make_optimizer(config.optim, config.train.max_steps)
    return init_state(config, VOCAB, optimizer)


def trained(backend: Backend) -> tuple[np.ndarray, TrainState]:
    """The losses of 30 steps, and the state after them as a checkpoint would hold it."""
    state, losses = backend.place(first_state()), []
    for steps in DISPATCHES:
        state, metrics = backend.run(state, stacked(random_batch, steps))
        losses.append(metrics.loss)
    return np.concatenate(losses), jax.device_get(backend.whole(state))


@pytest.fixture(scope="module")
def on_one_device() -> tuple[np.ndarray, TrainState]:
    step, state = step_and_state(CONFIG)
    run, losses = jax.jit(repeat(step)), []
    for steps in DISPATCHES:
        state, metrics = run(state, stacked(random_batch, steps))
        losses.append(metrics.loss)
    assert state.step.devices() == {jax.devices()[0]}
    return np.concatenate(losses), jax.device_get(state)


def test_there_are_several_devices():
    assert jax.device_count() == 8


@pytest.mark.parametrize(("name", "rtol"), [("jit", 1e-6), ("pmap", 1e-5)])
def test_many_devices_train_as_one_does(name, rtol, on_one_device):
    losses, state = trained(backend_of(name))
    wanted_losses, wanted = on_one_device
    np.testing.assert_allclose(losses, wanted_losses, rtol=rtol)
    assert (state.step, state.skipped) == (30, 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), state, wanted)


@pytest.mark.parametrize("name", BACKENDS)
def test_whole_undoes_place(name):
    backend, state = backend_of(name), first_state()
    numbered = state._replace(  # lanes that can be told apart
        carry=jax.tree.map(
            lambda c: np.arange(c.size, dtype=np.float32).reshape(c.shape), state.carry
        )
    )
    assert_same_bits(jax.device_get(backend.whole(backend.place(numbered))), numbered)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_run_can_be_taken_apart_and_put_together_by_another_backend(name, on_one_device):
    state, losses = first_state(), []
    for steps, name_then in zip(DISPATCHES, (name, *reversed(BACKENDS)), strict=True):
        backend = backend_of(name_then)
        placed, metrics = backend.run(backend.place(state), stacked(random_batch, steps))
        losses.append(metrics.loss)
        state = jax.device_get(backend.whole(placed))
    np.testing.assert_allclose(np.concatenate(losses), on_one_device[0], rtol=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("host", [True, False], ids=["numpy", "jax"])
def test_what_is_placed_is_not_consumed(name, host):
    state = jax.device_get(first_state()) if host else first_state()
    before = jax.tree.map(np.array, state)
    backend = backend_of(name)
    for _ in range(2):
        moved, _ = backend.run(backend.place(state), stacked(random_batch, range(10)))
        jax.block_until_ready(moved)
    assert_same_bits(state, before)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("lanes", "nearest"), [(12, 16), (4, 8), (1, 8), (17, 16)])
def test_a_batch_that_does_not_divide_is_refused(name, lanes, nearest):
    with pytest.raises(InputError) as refused:
        backend_of(name, config_of(data={"batch_size": lanes}))
    assert f"config.data.batch_size={lanes}:" in str(refused.value)
    assert "8 devices" in str(refused.value)
    assert str(refused.value).endswith(f" {nearest}")
