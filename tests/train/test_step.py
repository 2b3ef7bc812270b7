from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.data.batches import Batch
from charjax.model.likelihood import next_char_nats
from charjax.model.network import CharRNN
from charjax.train.step import make_step, repeat

from .tiny import (
    LANES,
    LENGTH,
    VOCAB,
    assert_same_bits,
    config_of,
    random_batch,
    stacked,
    step_and_state,
)


def fresh_batch(step: int = 0) -> Batch:
    return random_batch(step)._replace(fresh=np.ones(LANES, bool))


def nats_of(config, params, carry, batch) -> np.ndarray:
    """What the network alone says of every target."""
    logits, _ = CharRNN(config.model, VOCAB).apply({"params": params}, batch.inputs, carry)
    return np.asarray(next_char_nats(logits, batch.targets))


def test_without_knowledge_the_loss_is_that_of_a_uniform_guess():
    step, state = step_and_state(config_of())
    blank = jnp.zeros_like(state.params["output_kernel"])
    _, metrics = jax.jit(step)(
        state._replace(params={**state.params, "output_kernel": blank}), random_batch(0)
    )
    assert metrics.loss == pytest.approx(math.log(VOCAB), rel=1e-6)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_the_loss_is_the_mean_of_every_next_character_in_nats(cell):
    config = config_of(model={"cell": cell})
    step, state = step_and_state(config)
    _, metrics = jax.jit(step)(state, random_batch(0))
    wanted = nats_of(config, state.params, state.carry, random_batch(0)).mean()
    assert metrics.loss == pytest.approx(wanted, rel=1e-6)


def test_with_last_targets_the_loss_is_on_the_last_character():
    config = config_of(data={"batching": "sliding", "targets": "last"})
    step, state = step_and_state(config)
    _, metrics = jax.jit(step)(state, fresh_batch())
    wanted = nats_of(config, state.params, state.carry, fresh_batch())[:, -1].mean()
    assert metrics.loss == pytest.approx(wanted, rel=1e-6)


def test_masked_lanes_are_as_if_they_were_not_there():
    step, state = step_and_state(config_of())
    whole, live = fresh_batch(), 5
    mask = np.arange(LANES)[:, None] < np.full(LENGTH, live)
    after, metrics = jax.jit(step)(state, whole._replace(mask=mask))
    sliced_carry = jax.tree.map(lambda c: c[:live], state.carry)
    sliced = jax.tree.map(lambda x: x[:live], whole)
    wanted, wanted_metrics = jax.jit(step)(state._replace(carry=sliced_carry), sliced)
    for found, expected in zip(metrics, wanted_metrics, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        after.params,
        wanted.params,
    )


def test_what_is_masked_does_not_matter_at_all():
    step, state = step_and_state(config_of())
    batch = fresh_batch()
    mask = np.arange(LENGTH) < np.full((LANES, 1), 5)
    other = np.where(mask, batch.targets, (batch.targets + 1) % VOCAB)
    run = jax.jit(step)
    assert_same_bits(
        run(state, batch._replace(mask=mask)), run(state, batch._replace(mask=mask, targets=other))
    )


def test_a_short_cycle_is_learnt_by_heart():
    config = config_of(optim={"name": "adam", "learning_rate": 0.03})

    def cycle(step: int) -> Batch:
        at = step * LENGTH + np.arange(LENGTH + 1, dtype=np.int32)
        symbols = (np.arange(LANES, dtype=np.int32)[:, None] + at) % 4
        return random_batch(step)._replace(inputs=symbols[:, :-1], targets=symbols[:, 1:])

    step, state = step_and_state(config)
    _, metrics = jax.jit(repeat(step))(state, stacked(cycle, range(200)))
    assert metrics.loss[0] > 1
    assert metrics.loss[-1] < 0.01


def test_the_same_steps_give_the_same_bits():
    step, state = step_and_state(config_of(model={"dropout": 0.3}))
    runs = [jax.jit(repeat(step))(state, stacked(random_batch, range(4))) for _ in range(2)]
    assert_same_bits(*runs)


def test_the_step_is_traced_once():
    step, state = step_and_state(config_of(optim={"ema": 0.9}))
    traces = []

    def counted(state, batch):
        traces.append(0)
        return step(state, batch)

    run = jax.jit(counted)
    for number in range(4):
        state, _ = run(state, random_batch(number))
    assert len(traces) == 1
    assert state.step == 4


def test_steps_in_one_dispatch_are_steps_one_by_one():
    config = config_of(model={"dropout": 0.3, "cell": "lstm"}, optim={"ema": 0.9})
    step, one_by_one = step_and_state(config)
    together, metrics = jax.jit(repeat(step))(one_by_one, stacked(random_batch, range(6)))
    run, losses = jax.jit(step), []
    for number in range(6):
        one_by_one, each = run(one_by_one, random_batch(number))
        losses.append(each.loss)
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), together, one_by_one
    )


def test_the_averaged_weights_are_an_exponential_moving_average():
    decay = 0.3
    step, state = step_and_state(config_of(optim={"ema": decay, "learning_rate": 0.1}))
    run, mean = jax.jit(step), np.asarray(state.params["output_kernel"], np.float64)
    for number in range(8):
        state, _ = run(state, random_batch(number))
        rate = min(decay, (number + 1) / (number + 10))
        mean = rate * mean + (1 - rate) * np.asarray(state.params["output_kernel"], np.float64)
    np.testing.assert_allclose(state.ema["output_kernel"], mean, rtol=1e-5, atol=1e-7)
    assert state.best_params is state.ema


def test_without_averaging_the_weights_themselves_are_the_best():
    _, state = step_and_state(config_of())
    assert state.ema == ()
    assert state.best_params is state.params


def test_a_step_that_is_not_finite_moves_nothing_and_the_next_one_goes_on():
    step, state = step_and_state(config_of(optim={"ema": 0.9}))
    run = jax.jit(step)
    state, _ = run(state, random_batch(0))
    broken = state._replace(carry=jax.tree.map(lambda c: c.at[0].set(jnp.inf), state.carry))
    after, metrics = run(broken, random_batch(1))
    assert not np.isfinite(metrics.loss)
    assert (after.step, after.skipped, metrics.skipped) == (2, 1, 1)
    assert_same_bits(after._replace(step=broken.step, skipped=broken.skipped), broken)

    healed, metrics = run(after, fresh_batch())
    assert np.isfinite(metrics.loss)
    assert (healed.step, healed.skipped) == (3, 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(healed))


def test_the_carry_restarts_in_fresh_lanes_alone():
    step, state = step_and_state(config_of())
    run = jax.jit(step)
    full = state._replace(carry=jax.tree.map(jnp.ones_like, state.carry))
    some = np.arange(LANES) < 3
    mixed, _ = run(full, random_batch(1)._replace(fresh=some))
    zeroed, _ = run(state, random_batch(1)._replace(fresh=np.zeros(LANES, bool)))
    kept, _ = run(full, random_batch(1)._replace(fresh=np.zeros(LANES, bool)))
    for lane in range(LANES):
        wanted = zeroed if some[lane] else kept
        other = kept if some[lane] else zeroed
        np.testing.assert_array_equal(mixed.carry[0][0][lane], wanted.carry[0][0][lane])
        assert not np.array_equal(mixed.carry[0][0][lane], other.carry[0][0][lane])


def test_the_carry_continues_the_text():
    config = config_of(optim={"learning_rate": 0.0}, model={"layers": 2})
    step, state = step_and_state(config)
    batches = stacked(random_batch, range(3))
    after, metrics = jax.jit(repeat(step))(state, batches)
    whole = Batch(*(np.concatenate(list(part), axis=-1) for part in batches))
    nats = nats_of(config, state.params, state.carry, whole).reshape(LANES, 3, LENGTH)
    np.testing.assert_allclose(metrics.loss, nats.mean((0, 2)), rtol=1e-5)
    _, carry = CharRNN(config.model, VOCAB).apply(
        {"params": state.params}, whole.inputs, state.carry
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.carry, carry)


def test_dropout_is_a_function_of_seed_and_step():
    config = config_of(model={"dropout": 0.5})
    step, state = step_and_state(config)
    run = jax.jit(step)

    def loss(**changed):
        return float(run(state._replace(**changed), fresh_batch())[1].loss)

    assert loss() == loss()
    assert loss() != loss(step=jnp.int32(1))
    assert loss() == loss(skipped=jnp.int32(7))

    from dataclasses import replace

    from charjax.train.optimizer import make_optimizer

    reseeded = make_step(replace(config, seed=1), VOCAB, make_optimizer(config.optim, 1))
    assert loss() != float(jax.jit(reseeded)(state, fresh_batch())[1].loss)
