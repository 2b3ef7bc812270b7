from __future__ import annotations

import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from charjax.config import Config, ParallelConfig
from charjax.errors import InputError
from charjax.runtime.sharding import DATA_AXIS, data_mesh
from charjax.train.backends import Backend, make_backend, shard_steps
from charjax.train.optimizer import make_optimizer
from charjax.train.step import make_step, repeat
from charjax.train.train_state import TrainState

from .tiny import (
    VOCAB,
    assert_close,
    assert_same_bits,
    config_of,
    first_state,
    random_batch,
    stacked,
    step_of,
)

pytestmark = pytest.mark.usefixtures("eight_devices")

DISPATCHES = [stacked(random_batch, range(begin, begin + 10)) for begin in (0, 10, 20)]
CONFIG = config_of(
    model={"cell": "rnn", "dropout": 0.3, "dropout_in": 0.1, "dropout_recurrent": 0.2},
    optim={"ema": 0.9, "weight_decay": 0.01},
)
BACKENDS = ("jit", "pmap")
_COLLECTIVES = re.compile(
    r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\("
)


def make(name: str, config: Config = CONFIG) -> Backend:
    optimizer = make_optimizer(config.optim, config.train.max_steps)
    return make_backend(replace(config, parallel=ParallelConfig(backend=name)), VOCAB, optimizer)


@pytest.fixture(scope="module")
def backends() -> dict[str, Backend]:
    return {name: make(name) for name in BACKENDS}


@pytest.fixture(scope="module")
def on_one_device() -> tuple[np.ndarray, TrainState]:
    """The losses of 30 steps, and the state after them."""
    run, state, losses = jax.jit(repeat(step_of(CONFIG))), first_state(CONFIG), []
    for batches in DISPATCHES:
        state, metrics = run(state, batches)
        losses.append(metrics.loss)
    assert state.step.devices() == {jax.devices()[0]}
    return np.concatenate(losses), jax.device_get(state)


@pytest.mark.parametrize(("name", "rtol"), [("jit", 1e-6), ("pmap", 1e-5)])
def test_many_devices_train_as_one_does(name, rtol, backends, on_one_device):
    backend, losses = backends[name], []
    state = backend.place(first_state(CONFIG))
    for batches in DISPATCHES:
        state, metrics = backend.run(state, batches)
        losses.append(metrics.loss)
    wanted_losses, wanted = on_one_device
    np.testing.assert_allclose(np.concatenate(losses), wanted_losses, rtol=rtol)
    found = jax.device_get(backend.to_global(state))
    assert (found.step, found.skipped) == (30, 0)
    assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_collectives_are_outside_the_scan_over_time():
    """A collective in the scan over time would run at every character."""
    config = config_of(model={"layers": 2, "dropout_between": 0.3})
    optimizer = make_optimizer(config.optim, config.train.max_steps)
    body = repeat(make_step(config, VOCAB, optimizer, DATA_AXIS))
    steps = shard_steps(body, data_mesh())
    one = jax.tree.map(lambda x: x[:1], DISPATCHES[0])  # of one step: then no loop is over steps
    hlo = steps.lower(first_state(config), one).compile().as_text()
    main = hlo[hlo.index("\nENTRY ") :]
    assert _COLLECTIVES.search(main), "the gradients are summed over the devices"
    assert not _COLLECTIVES.search(hlo.removesuffix(main))


def test_a_run_may_change_its_backend(backends, on_one_device):
    state, losses = first_state(CONFIG), []
    for batches, name in zip(DISPATCHES, ("jit", "pmap", "jit"), strict=True):
        placed, metrics = backends[name].run(backends[name].place(state), batches)
        losses.append(metrics.loss)
        state = jax.device_get(backends[name].to_global(placed))
    np.testing.assert_allclose(np.concatenate(losses), on_one_device[0], rtol=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
def test_to_global_undoes_place(name, backends):
    state, backend = first_state(CONFIG), backends[name]
    numbered = state._replace(  # so that the sequences differ
        carry=jax.tree.map(
            lambda c: np.arange(c.size, dtype=np.float32).reshape(c.shape), state.carry
        )
    )
    assert_same_bits(jax.device_get(backend.to_global(backend.place(numbered))), numbered)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("host", [True, False], ids=["numpy", "jax"])
def test_the_state_that_is_placed_is_not_donated(name, host, backends):
    state = jax.device_get(first_state(CONFIG)) if host else first_state(CONFIG)
    before = jax.tree.map(np.array, state)
    for _ in range(2):
        moved, _ = backends[name].run(backends[name].place(state), DISPATCHES[0])
        jax.block_until_ready(moved)
    assert_same_bits(state, before)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "factors", "nearest"),
    [
        (12, 1, "the 8 devices", 16),
        (1, 1, "the 8 devices", 8),
        (17, 1, "the 8 devices", 16),
        (8, 3, "the 8 devices times config.parallel.accumulate=3", 24),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(batch_size, accumulate, factors, nearest):
    config = config_of(data={"batch_size": batch_size}, parallel={"accumulate": accumulate})
    with pytest.raises(InputError) as refused:
        make_backend(config, VOCAB, make_optimizer(config.optim, 1))
    assert str(refused.value) == (
        f"config.data.batch_size={batch_size}: must be a multiple of {factors}; "
        f"the nearest is {nearest}"
    )
