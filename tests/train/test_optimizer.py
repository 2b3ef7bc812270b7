from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from charjax.conditions import from_config_dict
from charjax.config import OPTIMIZER_FIELDS, ModelConfig, OptimConfig, to_dict
from charjax.errors import InputError
from charjax.model.network import init_params
from charjax.train.optimizer import OPTIMIZERS, make_optimizer, make_schedule
from charjax.train.step import make_step
from charjax.train.train_state import init_state

from .tiny import VOCAB, random_batch
from .tiny import config_of as run_of

TOTAL = 100
LR, B1, B2, EPS = 0.1, 0.8, 0.95, 1e-3


@pytest.mark.parametrize(
    ("schedule", "warmup", "final", "wanted"),
    [
        ("constant", 0.0, 0.0, {0: 2.0, 50: 2.0, 99: 2.0, 1000: 2.0}),
        ("constant", 0.1, 0.0, {0: 0.2, 4: 1.0, 9: 2.0, 50: 2.0, 1000: 2.0}),
        ("linear", 0.0, 0.1, {0: 2.0, 50: 1.1, 100: 0.2, 1000: 0.2}),
        ("linear", 0.1, 0.0, {0: 0.2, 4: 1.0, 9: 2.0, 10: 2.0, 55: 1.0, 100: 0.0}),
        ("cosine", 0.0, 0.0, {0: 2.0, 25: 1.7071068, 50: 1.0, 75: 0.2928932, 100: 0.0}),
        ("cosine", 0.2, 0.5, {0: 0.1, 19: 2.0, 20: 2.0, 60: 1.5, 100: 1.0}),
        ("onecycle", 0.3, 0.0, {0: 0.0852590, 14: 1.04, 29: 2.0, 30: 2.0, 65: 1.0, 100: 0.0}),
        ("onecycle", 0.3, 0.01, {29: 2.0, 65: 1.01, 100: 0.02}),
    ],
)
def test_golden_schedules(schedule, warmup, final, wanted):
    config = OptimConfig(learning_rate=2.0, schedule=schedule, warmup=warmup, final=final)
    rate = make_schedule(config, TOTAL)
    assert {step: float(rate(step)) for step in wanted} == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "onecycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.37, 1.0])
def test_a_schedule_rises_to_its_peak_and_never_after(schedule, warmup):
    total, final = 40, 0.1
    config = OptimConfig(learning_rate=1.0, schedule=schedule, warmup=warmup, final=final)
    rates = np.asarray(jax.vmap(make_schedule(config, total))(jnp.arange(total + 10)))
    peak = max(round(warmup * total) - 1, 0)
    assert rates[peak] == pytest.approx(1)
    assert all(a <= b + 1e-6 for a, b in itertools.pairwise(rates[: peak + 1]))
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(rates[peak:]))
    assert rates.min() >= 0
    if schedule != "constant":
        assert rates[total + 1 :] == pytest.approx(final, abs=1e-6)


def gradients(steps: int) -> Iterator[np.ndarray]:
    return iter(np.random.default_rng(0).normal(size=(steps, 3, 2)))


# Each optimizer from its paper, in float64: gradients -> updates.
def adam(grads: Iterator[np.ndarray], eps_hat: bool = False) -> Iterator[np.ndarray]:
    mean = square = np.zeros((3, 2))
    for t, g in enumerate(grads, start=1):
        mean, square = B1 * mean + (1 - B1) * g, B2 * square + (1 - B2) * g**2
        eps = EPS / np.sqrt(1 - B2**t) if eps_hat else EPS  # of the paper's section 2
        yield -LR * mean / (1 - B1**t) / (np.sqrt(square / (1 - B2**t)) + eps)


def rmsprop(grads: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    square = np.zeros((3, 2))
    for g in grads:
        square = B2 * square + (1 - B2) * g**2
        yield -LR * g / (np.sqrt(square) + EPS)


def sgd(grads: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    velocity = np.zeros((3, 2))
    for g in grads:
        velocity = B1 * velocity + g
        yield -LR * velocity


def muon(grads: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    mean = np.zeros((3, 2))
    for t, g in enumerate(grads, start=1):
        mean = B1 * mean + (1 - B1) * g
        x = B1 * mean / (1 - B1 ** (t + 1)) + (1 - B1) * g / (1 - B1**t)  # Nesterov momentum
        x = (x / (np.linalg.norm(x) + EPS)).T
        for _ in range(5):  # Newton-Schulz: the singular values come near 1
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        yield -LR * 0.2 * np.sqrt(3) * x.T


def schedule_free(
    grads: Iterator[np.ndarray], rates: Iterable[float] = itertools.repeat(LR)
) -> Iterator[np.ndarray]:
    x = y = z = np.ones((3, 2))
    square, weights = np.zeros((3, 2)), 0.0
    for t, (g, rate) in enumerate(zip(grads, rates, strict=False), start=1):
        square = B2 * square + (1 - B2) * g**2
        z = z - rate * g / (np.sqrt(square / (1 - B2**t)) + EPS)
        weights += rate**2
        x = x + rate**2 / weights * (z - x)
        y, before = B1 * x + (1 - B1) * z, y
        yield y - before


def config_of(name: str, **fields: float | str | bool) -> OptimConfig:
    given = {"learning_rate": LR, "b1": B1, "b2": B2, "eps": EPS, "clip_norm": 0.0}
    return OptimConfig(name=name, **{**given, **fields})  # type: ignore[arg-type]


def updates_of(config: OptimConfig, grads: Iterator[np.ndarray], params: np.ndarray) -> np.ndarray:
    optimizer, w = make_optimizer(config, TOTAL), jnp.asarray(params, jnp.float32)
    state, updates = optimizer.init(w), []
    for g in grads:
        update, state = optimizer.update(jnp.asarray(g, jnp.float32), state, w)
        w = optax.apply_updates(w, update)
        updates.append(update)
    return np.stack(updates)


RULES: dict[str, Callable[[Iterator[np.ndarray]], Iterator[np.ndarray]]] = {
    "adamw": adam,
    "adam": adam,
    "rmsprop": rmsprop,
    "sgd": sgd,
    "muon": muon,
    "schedule_free": schedule_free,
}


@pytest.mark.parametrize("name", RULES)
def test_each_optimizer_is_that_of_its_paper(name):
    found = updates_of(config_of(name), gradients(5), np.ones((3, 2)))
    wanted = np.stack(list(RULES[name](gradients(5))))
    rounding = 2e-7 if name == "schedule_free" else 0  # its updates are differences of weights
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=rounding)


def test_in_a_warm_up_schedule_free_learning_weighs_an_iterate_by_its_learning_rate():
    config = config_of("schedule_free", warmup=0.04)
    found = updates_of(config, gradients(6), np.ones((3, 2)))
    rates = LR * np.minimum(1, np.arange(1, 7) / 4)
    wanted = np.stack(list(schedule_free(gradients(6), rates)))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_with_the_other_epsilon_is_that_of_keras(name):
    found = updates_of(config_of(name, eps_hat=True), gradients(5), np.ones((3, 2)))
    np.testing.assert_allclose(found, np.stack(list(adam(gradients(5), eps_hat=True))), rtol=1e-5)
    plain = updates_of(config_of(name), gradients(5), np.ones((3, 2)))
    assert not np.allclose(found, plain, rtol=1e-3)


def test_the_learning_rate_follows_the_schedule():
    config = config_of("sgd", b1=0.0, schedule="linear", warmup=0.05)
    rate = make_schedule(config, TOTAL)
    found = updates_of(config, iter(np.ones((10, 1, 1))), np.ones((1, 1)))
    np.testing.assert_allclose(-found[:, 0, 0], [rate(step) for step in range(10)], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "cell"),
    [("adamw", "gru"), ("adamw", "lstm"), ("muon", "rnn"), ("schedule_free", "rnn")],
)
def test_weight_decay_shrinks_kernels_alone(name, cell):
    model = ModelConfig(cell=cell, hidden=4, embed=3, layers=2)
    shapes = jax.eval_shape(partial(init_params, model, 5), jax.random.key(0))
    params = jax.tree.map(lambda p: np.full(p.shape, 2.0, np.float32), shapes)
    optimizer = make_optimizer(config_of(name, weight_decay=0.5), TOTAL)
    still = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(still, jax.jit(optimizer.init)(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        is_kernel = "kernel" in path[-1].key
        np.testing.assert_allclose(update, -LR * 0.5 * 2.0 * is_kernel, rtol=2e-6)
    assert not updates["embedding"].any()
    assert updates["output_kernel"].all()


@pytest.mark.parametrize("norm", [0.02, 1.0, 70.0])
@pytest.mark.parametrize("clip_norm", [0.01, 1.5, 100.0])
def test_the_gradient_is_clipped_by_its_global_norm_and_keeps_its_direction(norm, clip_norm):
    grads = {"a": jnp.full((2, 2), norm / 2 * 0.6), "b": jnp.full(4, norm / 2 * 0.8)}
    config = config_of("sgd", learning_rate=1.0, b1=0.0, clip_norm=clip_norm)
    optimizer = make_optimizer(config, TOTAL)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    shrunk = min(1.0, clip_norm / norm)
    for name, grad in grads.items():
        np.testing.assert_allclose(-updates[name], grad * shrunk, rtol=1e-5)


def test_every_optimizer_of_the_config_has_a_builder():
    assert OPTIMIZERS.keys() == OPTIMIZER_FIELDS.keys()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("wide", [False, True])
def test_a_state_has_no_numbers_of_64_bits(wide, name):
    """Else a run would need the same `jax_enable_x64` to be resumed."""
    config = run_of(optim={"name": name, "warmup": 0.5})
    optimizer = make_optimizer(config.optim, TOTAL)
    step = make_step(config, VOCAB, optimizer)
    with jax.enable_x64(wide):
        state = init_state(config, VOCAB, optimizer)
        after = jax.eval_shape(step, state, random_batch(0))[0]
    for tree in (state, after):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(tree)} == {"float32", "int32"}


def test_an_optimizer_is_added_by_its_name_and_one_row(monkeypatch):
    monkeypatch.setitem(OPTIMIZER_FIELDS, "lion", frozenset({"b1", "b2"}))  # in charjax.config
    monkeypatch.setitem(  # in charjax.train.optimizer
        OPTIMIZERS, "lion", lambda config, schedule: optax.lion(schedule, config.b1, config.b2)
    )
    values = to_dict(run_of(optim={"name": "lion", "learning_rate": 2e-2, "b2": 0.95}))
    config = from_config_dict(values)
    optimizer = make_optimizer(config.optim, 40)
    state = init_state(config, VOCAB, optimizer)
    step = jax.jit(make_step(config, VOCAB, optimizer))
    losses = []
    for _ in range(40):
        state, metrics = step(state, random_batch(0))
        losses.append(float(metrics.loss))
    assert losses[-1] < losses[0] - 0.2


def test_a_part_that_the_parameters_lack_cannot_be_frozen():
    params = {"embedding": jnp.ones(2), "layer_0": jnp.ones(2), "output_bias": jnp.ones(2)}
    optimizer = make_optimizer(OptimConfig(freeze="output,layer_9"), 10)
    with pytest.raises(InputError, match="freeze=layer_9: no such part; there are embedding, l"):
        optimizer.init(params)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "fields", [{"schedule": "linear"}, {"schedule": "onecycle"}, {"warmup": 0.1}]
)
def test_a_schedule_over_no_steps_is_refused(fields):
    """It would end, at a learning rate of 0, after the first one."""
    config = OptimConfig(**fields)
    for total in (0, -1, 1.5, "10", None):
        with pytest.raises(InputError, match=f"^total_steps={total!r}: must be "):
            make_schedule(config, total)
        make_schedule(OptimConfig(), total)  # constant
    assert make_schedule(config, jnp.int32(10)) is make_schedule(config, 10)


@pytest.mark.parametrize(("field", "value"), [("name", "Adam"), ("schedule", "cos"), ("b1", 2.0)])
def test_a_field_outside_its_limits_is_refused_by_name(field, value):
    for make in (make_schedule, make_optimizer):
        with pytest.raises(InputError, match=f"^config.optim.{field}={value!r}: must be "):
            make(OptimConfig(**{field: value}), 10)
