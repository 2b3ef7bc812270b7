from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.losses import softmax_cross_entropy_with_integer_labels

from charjax.config import Config, OptimConfig, to_config_dict
from charjax.data.batches import Batch, make_batches
from charjax.data.dataset import load_dataset
from charjax.errors import InputError
from charjax.model.network import CharRNN
from charjax.runtime.dtypes import resolve_dtype
from charjax.train.optimizer import make_optimizer, make_schedule
from charjax.train.step import fields_of_step, make_step, repeat
from charjax.train.train_state import init_state
from charjax.types import Carry, PyTree
from tests.model.recurrence.c_library import needs_c

from .tiny import (
    BATCH,
    LENGTH,
    VOCAB,
    assert_close,
    assert_same_bits,
    config_of,
    first_state,
    jitted,
    random_batch,
    stacked,
    step_of,
    text_of,
)

CONFIG = config_of(optim={"ema": 0.3, "learning_rate": 0.05})
DISPATCH = 6
DROPOUT = config_of(model={"dropout": 0.3})


def reset_batch(step: int = 0) -> Batch:
    return random_batch(step)._replace(reset=np.ones(BATCH, bool))


@jax.jit
def network(params: PyTree, carry: Carry, batch: Batch) -> tuple[jax.Array, Carry]:
    """The cross entropy of every target and the final carry, by the network alone."""
    logits, carry = CharRNN(CONFIG.model, VOCAB).apply({"params": params}, batch.inputs, carry)
    return softmax_cross_entropy_with_integer_labels(logits, batch.targets), carry


def with_other_values(section: Any) -> Any:
    """The section of a config with another value of every field, though not always a legal one."""

    def another(value: Any, choices: Any) -> Any:
        if choices:
            return next(choice for choice in choices if choice != value)
        if isinstance(value, bool):
            return not value
        return (*value, 1) if isinstance(value, tuple) else value + type(value)(1)

    values = {
        f.name: another(getattr(section, f.name), f.metadata.get("choices"))
        for f in fields(section)
    }
    return replace(section, **values)


def test_a_step_reads_no_field_but_those_of_step():
    other = {
        s: with_other_values(getattr(DROPOUT, s)) for s in ("data", "train", "sample", "parallel")
    }
    config = replace(DROPOUT, **other)

    def program(config: Config) -> str:
        step = make_step(config, VOCAB, make_optimizer(config.optim, 40))
        return jax.jit(step).lower(first_state(DROPOUT), random_batch(0)).as_text()

    kept = fields_of_step(config)
    assert program(kept) == program(config)
    assert kept.train != config.train
    assert kept.data != config.data
    assert kept.sample != config.sample


def test_the_softmax_temperature_divides_the_logits_of_a_step():
    state, output = first_state(CONFIG), ("output_kernel", "output_bias")
    divided = {name: state.params[name] / 0.5 for name in output}
    half = replace(CONFIG, train=replace(CONFIG.train, softmax_temperature=0.5))
    _, at_half = jitted(half)(state, random_batch(0))
    sharper = state._replace(params={**state.params, **divided})
    _, at_one = jitted(CONFIG)(sharper, random_batch(0))
    assert at_half.loss == pytest.approx(float(at_one.loss), rel=1e-6)
    _, plain = jitted(CONFIG)(state, random_batch(0))
    assert at_half.loss != pytest.approx(float(plain.loss), rel=1e-6)


def test_the_loss_is_the_mean_of_every_next_character_in_nats():
    state = first_state(CONFIG)
    _, metrics = jitted(CONFIG)(state, random_batch(0))
    nats, _ = network(state.params, state.carry, random_batch(0))
    assert metrics.loss == pytest.approx(float(nats.mean()), rel=1e-6)


@needs_c
@pytest.mark.parametrize("fields", [{}, {"remat": LENGTH // 2}])
def test_the_cross_entropy_runs_where_the_recurrence_does(fields):
    programs = {}
    for recurrence in ("c", "xla"):
        config = replace(CONFIG, model=replace(CONFIG.model, recurrence=recurrence, **fields))
        step = make_step(config, VOCAB, make_optimizer(config.optim, 40))
        programs[recurrence] = jax.jit(step).lower(first_state(config), random_batch(0)).as_text()
    assert {name for name, text in programs.items() if "cross_entropy_backward" in text} == {"c"}


def test_with_last_targets_the_loss_is_on_the_last_character():
    config = config_of(data={"batching": "sliding", "targets": "last"})
    state = first_state(config)
    _, metrics = jitted(config)(state, reset_batch())
    nats, _ = network(state.params, state.carry, reset_batch())
    assert metrics.loss == pytest.approx(float(nats[:, -1].mean()), rel=1e-6)


def test_a_row_of_documents_is_trained_on_as_rows_of_one_document_each():
    state, boundary_id, half = first_state(CONFIG), 3, LENGTH // 2
    batch = reset_batch()
    inputs = batch.inputs.copy()
    inputs[:, [0, half]] = boundary_id
    batch = batch._replace(inputs=inputs)
    halves = [
        Batch(*(part[:, at] for part in batch[:3]), batch.reset)
        for at in (slice(half), slice(half, None))
    ]
    packed = jitted(CONFIG, boundary_id)(state, batch)
    rows = Batch(*(np.concatenate(parts) for parts in zip(*halves, strict=True)))
    twice = state._replace(carry=jax.tree.map(lambda c: jnp.tile(c, (2, 1)), state.carry))
    apart = jitted(CONFIG, boundary_id)(twice, rows)
    np.testing.assert_allclose(packed[1].loss, apart[1].loss, rtol=1e-6)
    assert_close(packed[0].opt_state, apart[0].opt_state, atol=1e-9)
    assert_close(packed[0].carry, jax.tree.map(lambda c: c[BATCH:], apart[0].carry))


def test_masked_sequences_do_not_count():
    state, whole, live = first_state(CONFIG), reset_batch(), 5
    mask = np.arange(BATCH)[:, None] < np.full(LENGTH, live)
    found, found_metrics = jitted(CONFIG)(state, whole._replace(mask=mask))
    fewer = state._replace(carry=jax.tree.map(lambda c: c[:live], state.carry))
    wanted, metrics = jitted(CONFIG)(fewer, Batch(*(part[:live] for part in whole)))
    np.testing.assert_allclose(found_metrics.loss, metrics.loss, rtol=1e-6)
    np.testing.assert_allclose(found_metrics.grad_norm, metrics.grad_norm, rtol=1e-5)
    # The second moment, unlike adam's first step, shows how large the gradient was.
    assert_close(found.opt_state, wanted.opt_state, atol=1e-9)


def test_masked_targets_do_not_matter():
    state, batch = first_state(CONFIG), reset_batch()
    mask = np.arange(LENGTH) < np.full((BATCH, 1), 5)
    other = np.where(mask, batch.targets, (batch.targets + 1) % VOCAB)
    one = jitted(CONFIG)(state, batch._replace(mask=mask))
    assert_same_bits(one, jitted(CONFIG)(state, batch._replace(mask=mask, targets=other)))


def test_a_short_cycle_is_learnt_by_heart_and_the_step_traced_once():
    def cycle(step: int) -> Batch:
        at = step * LENGTH + np.arange(LENGTH + 1, dtype=np.int32)
        tokens = (np.arange(BATCH, dtype=np.int32)[:, None] + at) % 4
        return random_batch(step)._replace(inputs=tokens[:, :-1], targets=tokens[:, 1:])

    traces = []

    def traced(state, batch):
        traces.append(batch)
        return step_of(CONFIG)(state, batch)

    run, state, losses = jax.jit(repeat(traced)), first_state(CONFIG), []
    for begin in range(0, 150, DISPATCH):
        state, metrics = run(state, stacked(cycle, range(begin, begin + DISPATCH)))
        losses.extend(metrics.loss)
    assert losses[0] > 1
    assert losses[-1] < 0.01
    assert len(traces) == 1


def test_steps_in_one_dispatch_are_steps_one_by_one():
    state, losses = first_state(CONFIG), []
    together, metrics = jax.jit(repeat(step_of(CONFIG)))(
        state, stacked(random_batch, range(DISPATCH))
    )
    for number in range(DISPATCH):
        state, each = jitted(CONFIG)(state, random_batch(number))
        losses.append(each.loss)
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-6)
    assert_close(together, state)


def test_the_averaged_weights_are_an_exponential_moving_average():
    state = first_state(CONFIG)
    mean = np.asarray(state.params["output_kernel"], np.float64)
    for number in range(8):
        state, _ = jitted(CONFIG)(state, random_batch(number))
        decay = min(0.3, (number + 1) / (number + 10))
        mean = decay * mean + (1 - decay) * np.asarray(state.params["output_kernel"], np.float64)
    np.testing.assert_allclose(state.ema["output_kernel"], mean, rtol=1e-5, atol=1e-7)
    assert state.eval_params is state.ema


@pytest.mark.parametrize("freeze", ["", "layer_0"])
def test_schedule_free_learning_evaluates_the_mean_of_its_iterates(freeze):
    optim = {"name": "schedule_free", "learning_rate": 0.05, "freeze": freeze}
    config = config_of(model={"cell": "rnn"}, optim=optim)
    state, iterates = first_state(config), []
    for number in range(4):
        state, _ = jitted(config)(state, random_batch(number))
        iterates.append(optax.tree.get(state.opt_state, "z")["output_kernel"])
    assert state.eval_params is state.ema
    np.testing.assert_allclose(
        state.ema["output_kernel"], np.mean(iterates, axis=0), rtol=1e-4, atol=1e-6
    )
    assert not np.allclose(state.ema["output_kernel"], state.params["output_kernel"], atol=1e-4)
    is_still = [
        np.array_equal(after["layer_0"]["kernel"], first_state(config).params["layer_0"]["kernel"])
        for after in (state.params, state.ema)
    ]
    assert is_still == [bool(freeze)] * 2


def test_without_averaging_the_parameters_themselves_are_evaluated():
    state = first_state(config_of())
    assert state.ema == ()
    assert state.eval_params is state.params


def test_a_step_that_is_not_finite_changes_counts_alone_and_the_next_one_goes_on():
    state, _ = jitted(CONFIG)(first_state(CONFIG), random_batch(0))
    broken = state._replace(carry=jax.tree.map(lambda c: c.at[0].set(jnp.inf), state.carry))
    after, metrics = jitted(CONFIG)(broken, random_batch(1))
    assert not np.isfinite(metrics.loss)
    assert (after.step, after.skipped, metrics.skipped) == (2, 1, 1)
    assert_same_bits(after._replace(step=broken.step, skipped=broken.skipped), broken)

    healed, metrics = jitted(CONFIG)(after, reset_batch())
    assert np.isfinite(metrics.loss)
    assert (healed.step, healed.skipped) == (3, 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(healed))
    assert not np.array_equal(healed.params["output_kernel"], broken.params["output_kernel"])


def test_the_carry_is_reset_in_the_marked_sequences_alone():
    state, some = first_state(CONFIG), np.arange(BATCH) < 3
    full = state._replace(carry=jax.tree.map(jnp.ones_like, state.carry))

    def carry_after(state, reset):
        return jitted(CONFIG)(state, random_batch(1)._replace(reset=reset))[0].carry[0][0]

    mixed = carry_after(full, some)
    kept, zeroed = (carry_after(s, np.zeros(BATCH, bool)) for s in (full, state))
    np.testing.assert_array_equal(mixed, np.where(some[:, None], zeroed, kept))
    assert not np.isclose(kept, zeroed, atol=1e-4).all(axis=1).any()


def test_the_carry_continues_the_text():
    before = first_state(CONFIG)
    after, _ = jitted(CONFIG)(before, random_batch(0))
    _, carry = network(before.params, before.carry, random_batch(0))
    assert_close(after.carry, carry)
    last, metrics = jitted(CONFIG)(after, random_batch(1))
    nats, carry = network(after.params, carry, random_batch(1))
    assert metrics.loss == pytest.approx(float(nats.mean()), rel=1e-5)
    assert_close(last.carry, carry)


def test_dropout_is_a_function_of_seed_and_step():
    state = first_state(DROPOUT)

    def loss(config: Config = DROPOUT, **changed: int) -> float:
        at = state._replace(**{name: jnp.int32(value) for name, value in changed.items()})
        return float(jitted(config)(at, reset_batch())[1].loss)

    assert loss() == loss(skipped=7)
    assert loss() != loss(step=1)
    assert loss() != loss(replace(DROPOUT, seed=1))


def test_the_learning_rate_is_that_of_the_newest_update_and_not_of_the_newest_step():
    schedule = make_schedule(OptimConfig(schedule="linear"), 40)
    optimizer = make_optimizer(CONFIG.optim, 40)
    step = jax.jit(make_step(CONFIG, VOCAB, optimizer, schedule=schedule))

    def rate(at: int, skipped: int) -> float:
        state = first_state(CONFIG)._replace(step=jnp.int32(at), skipped=jnp.int32(skipped))
        return float(step(state, reset_batch())[1].learning_rate)

    assert rate(0, 0) == pytest.approx(float(schedule(0)))
    assert rate(20, 0) == pytest.approx(float(schedule(20)))
    assert rate(20, 3) == pytest.approx(float(schedule(17)))

    # A skipped step has the learning rate of the update before it.
    broken = first_state(CONFIG)._replace(step=jnp.int32(20))
    broken = broken._replace(carry=jax.tree.map(lambda c: c.at[0].set(jnp.inf), broken.carry))
    _, metrics = step(broken, random_batch(1))
    assert metrics.skipped == 1
    assert float(metrics.learning_rate) == pytest.approx(float(schedule(19)))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "mask",
            np.ones((1, LENGTH), bool),
            rf"of shape \(1, {LENGTH}\): must be \({BATCH}, {LENGTH}\)",
        ),
        ("mask", np.full((BATCH, LENGTH), 0.5, np.float32), "of dtype float32: must be bool"),
        ("targets", np.zeros((BATCH, 1), np.int32), rf"of shape \({BATCH}, 1\): must be "),
        ("targets", np.zeros((BATCH, LENGTH)), "of dtype float32: must be integers"),
        ("inputs", np.zeros(BATCH, int), rf"of shape \({BATCH},\): must be \[sequences, char"),
        ("reset", np.ones(1, bool), rf"of shape \(1,\): must be \({BATCH},\)"),
    ],
)
def test_a_batch_whose_arrays_do_not_fit_together_is_refused(name, value, message):
    batch = reset_batch()._replace(**{name: value})
    with pytest.raises(InputError, match=f"^batch.{name} {message}"):
        jax.eval_shape(step_of(CONFIG), first_state(CONFIG), batch)


@pytest.mark.parametrize(
    ("fields", "rows", "message"),
    [
        ({"parallel": {"accumulate": 3}}, BATCH, r"^config\.parallel\.accumulate=3: must divide"),
        ({"model": {"remat": 3}}, BATCH, r"^config\.model\.remat=3: must divide"),
        ({}, 4, rf"^batch\.inputs of shape \(4, {LENGTH}\): the carry is of {BATCH} sequences"),
    ],
)
def test_a_batch_that_fits_neither_carry_nor_config_is_refused(fields, rows, message):
    batch, config = Batch(*(array[:rows] for array in reset_batch())), config_of(**fields)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(step_of(config), first_state(config), batch)


@pytest.mark.parametrize(
    "average", [{"ema": 0.3}, {"name": "schedule_free", "schedule": "constant", "final": 0.0}]
)
def test_a_state_with_an_average_and_a_step_without_one_are_refused_and_the_reverse(average):
    configs = [config_of(optim=average), config_of(optim={"ema": 0.0})]
    for step, state, found in ((*configs, "is empty"), (*configs[::-1], "has an average")):
        with pytest.raises(InputError, match=rf"^state\.ema {found}, with optim\.name="):
            jax.eval_shape(step_of(step), first_state(state), reset_batch())


@pytest.mark.usefixtures("unchecked_types")
def test_the_pieces_of_a_loop_take_what_a_config_file_returns(tmp_path):
    (tmp_path / "text.txt").write_text(text_of(200))
    data, optim = {"path": str(tmp_path / "text.txt")}, {"schedule": "linear"}

    def first_step(config: Any) -> PyTree:
        dataset, optimizer = load_dataset(config), make_optimizer(config.optim, 10)
        state = init_state(config, len(dataset.vocab), optimizer)
        step = make_step(config, len(dataset.vocab), optimizer)
        return step(state, make_batches(config.data, dataset.splits.train, 0)(0))

    config = config_of(data=data, optim=optim)
    assert_same_bits(first_step(to_config_dict(config)), first_step(config))
    config = config_of(model={"dtype": "auto"})
    assert resolve_dtype(to_config_dict(config)) == resolve_dtype(config)


def test_a_step_computes_no_number_that_is_not_finite():
    """Users look for such numbers with `jax_debug_nans`."""
    with jax.debug_nans(True), jax.debug_infs(True):
        _, metrics = jitted(DROPOUT)(first_state(DROPOUT), reset_batch())
    assert metrics.learning_rate is None


@pytest.mark.parametrize("boundary_id", [-1, VOCAB])
def test_a_boundary_outside_the_vocabulary_is_refused(boundary_id):
    """At no position would the carry be reset."""
    with pytest.raises(InputError, match=f"^id {boundary_id}: the model has {VOCAB} tokens"):
        make_step(CONFIG, VOCAB, optax.sgd(0.1), boundary_id=boundary_id)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("train", "softmax_temperature", 0.0), ("parallel", "accumulate", 0), ("seed", "", -1)],
)
def test_a_field_outside_its_limits_is_refused_by_name(section, field, value):
    changed = replace(getattr(CONFIG, section), **{field: value}) if field else value
    name = f"{section}.{field}".removesuffix(".")
    with pytest.raises(InputError, match=f"^config.{name}={value}: must be from "):
        make_step(replace(CONFIG, **{section: changed}), VOCAB, optax.sgd(0.1))
