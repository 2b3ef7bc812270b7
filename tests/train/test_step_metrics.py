"""A record has the metrics of the steps since the record before it, and of no others."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from charjax.checkpoint.progress import ExactMean
from charjax.config import ModelConfig
from charjax.data.batches import Batches
from charjax.errors import DivergedError
from charjax.model.cells import CELLS
from charjax.model.network import init_params
from charjax.train.clock import Clock
from charjax.train.step import StepMetrics
from charjax.train.step_metrics import StepMetricsBuffer, step_flops

from .tiny import TIMES, config_of

BATCHES = Mock(Batches, steps_per_epoch=16, chars_per_epoch=600)
FLOPS = 900  # of a step
MAX_SKIPPED = 2


def metrics_of(losses: list[float], skipped: list[int]) -> StepMetrics:
    loss = jnp.asarray(losses)
    return StepMetrics(loss, loss / 2, loss / 100, jnp.asarray(skipped, jnp.int32))


def buffer_of(*losses: float, skipped: int = 0) -> StepMetricsBuffer:
    return StepMetricsBuffer(ExactMean.of(losses), skipped, MAX_SKIPPED)


def losses_and_norm(buffer: StepMetricsBuffer) -> dict[str, float]:
    """A record without step, time and learning rate."""
    record = buffer.pop_record(40, BATCHES, Clock(0.0), FLOPS)
    others = ("step", "epoch", "learning_rate", *TIMES)
    return {name: value for name, value in record.items() if name not in others}


def test_a_dispatch_is_read_after_the_next_one_is_sent():
    buffer = buffer_of(6.0)  # since the last record, before the run was resumed
    buffer.push(metrics_of([4.0, 3.0], [0, 0]), 2)
    assert buffer.losses == ExactMean.of([6.0])
    buffer.push(metrics_of([2.0, 1.0], [0, 0]), 4)
    assert buffer.losses == ExactMean.of([6.0, 4.0, 3.0])
    for _ in range(2):
        buffer.flush()
        assert buffer.losses == ExactMean.of([6.0, 4.0, 3.0, 2.0, 1.0])


def test_a_record_clears_the_losses():
    buffer = buffer_of()
    assert losses_and_norm(buffer) == {}
    buffer.push(metrics_of([4.0, 3.0], [0, 0]), 2)
    buffer.flush()
    assert losses_and_norm(buffer) == {"train_loss": 3.5, "grad_norm": 1.5}
    assert buffer.losses == ExactMean()
    assert losses_and_norm(buffer) == {"grad_norm": 1.5}


def test_a_record_has_step_time_speed_and_the_last_learning_rate(time_is):
    # The loss from before the run was resumed counts in the record, but took no time since.
    buffer, clock = buffer_of(0.0), Clock(50.0)
    buffer.push(metrics_of([1.0, 2.0], [0, 0]), 40)
    buffer.flush()
    time_is(3.0)
    clock.stalled_s += 0.75
    assert buffer.pop_record(40, BATCHES, clock, FLOPS) == {
        "step": 40,
        "epoch": 2.5,
        "time_s": 53.0,
        "chars_per_second": 25.0,  # two steps of 37.5 characters in three seconds
        "flops_per_second": 600,
        "input_stall": 0.25,
        "learning_rate": pytest.approx(0.02),
        "train_loss": 1.0,
        "grad_norm": 1.0,
    }
    record = buffer.pop_record(40, BATCHES, clock, FLOPS)
    assert record.keys() == {"step", "epoch", "time_s", "grad_norm"}  # of no step there is no speed


def test_devices_that_compute_do_not_wait_for_a_batch():
    buffer = buffer_of()
    assert buffer.is_idle  # nothing was dispatched yet
    buffer.push(metrics_of([4.0], [0])._replace(loss=Mock(is_ready=lambda: False)), 1)
    assert not buffer.is_idle


def test_reading_metrics_runs_no_program_on_the_device(compiled):
    """It would run after the next dispatch, which is in the queue already."""
    buffer = buffer_of()
    buffer.push(metrics_of([4.0] * 23, [0] * 23), 23)  # a length of no other test
    before = compiled[0]
    buffer.flush()
    assert compiled[0] == before


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("layers", "embed"), [(1, 4), (2, 4), (3, 0)])
def test_flops_are_six_for_each_token_and_weight_of_a_matmul(cell, layers, embed):
    model = ModelConfig(cell=cell, hidden=8, layers=layers, embed=embed)
    kernels = flatten_dict(jax.eval_shape(lambda: init_params(model, 12, jax.random.key(0))))
    if not embed and not CELLS[cell].rounds:  # a lookup
        del kernels["layer_0", "kernel"]
    sizes = {"/".join(k): v.size for k, v in kernels.items() if k[-1].endswith("kernel")}
    data = {"batch_size": 2, "seq_len": 5}
    config = replace(config_of(data=data), model=model)
    assert step_flops(config, 12) == 6 * 10 * sum(sizes.values())
    config = replace(config_of(data=data | {"targets": "last"}), model=model)
    output = sizes.pop("output_kernel")
    assert step_flops(config, 12) == 6 * (10 * sum(sizes.values()) + 2 * output)


def test_a_loss_that_is_not_finite_is_counted_and_warned_of_and_left_out(caplog):
    buffer = buffer_of(skipped=1)
    with caplog.at_level(logging.WARNING, "charjax"):
        buffer.push(metrics_of([4.0, math.nan], [1, 2]), 1200)
        buffer.push(metrics_of([3.0, 2.0], [2, 2]), 1202)
        buffer.flush()
    assert losses_and_norm(buffer) == {"train_loss": 3.0, "grad_norm": 1.0, "skipped": 2}
    (line,) = caplog.messages
    assert line.startswith("step 1,200: skipped 1 non-finite update,")
    assert line.endswith("2 in all")


def test_too_many_skipped_updates_end_the_run():
    buffer = buffer_of()
    buffer.push(metrics_of([math.inf], [3]), 3)
    with pytest.raises(DivergedError, match=r"^3 non-finite updates up to step 3$"):
        buffer.flush()
