from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.checkpoint.progress import ExactMean, Progress, Validation
from charjax.errors import InputError

finite = st.floats(allow_nan=False, allow_infinity=False)
losses_of_steps = st.lists(st.floats(-1e30, 1e30) | st.floats(0, 20, width=32))


@given(finite, losses_of_steps, finite | st.none(), st.integers(0, 2**62), st.text())
def test_progress_survives_json(elapsed_s, losses, best, since_best, ended):
    past = Progress(elapsed_s, ExactMean.of(losses), Validation(best, since_best), ended)
    assert Progress.from_json(json.loads(json.dumps(past.to_json(), allow_nan=False))) == past


@given(losses_of_steps)
def test_a_mean_is_that_of_all_losses_digit_for_digit_and_takes_a_few_floats(losses):
    mean = ExactMean.of(losses)
    assert mean.count == len(losses)
    assert len(mean.partials) < 100
    if losses:
        assert mean.value() == math.fsum(losses) / len(losses)


@given(losses_of_steps)
def test_the_losses_of_a_run_of_an_older_version_are_read(losses):
    """It wrote all of them."""
    old = Progress().to_json() | {"losses": losses}
    del old["num_losses"]
    assert Progress.from_json(old) == Progress(losses=ExactMean.of(losses))


@pytest.mark.parametrize("number", [10**400, math.inf, True, "1"])
def test_a_pending_record_has_numbers_that_a_float_can_hold(number):
    record = {"step": 1, "epoch": 0.5}
    values = Progress(pending=record).to_json()
    assert Progress.from_json(values).pending == record
    with pytest.raises(InputError, match="pending is not a record"):
        Progress.from_json(values | {"pending": record | {"epoch": number}})


def test_a_million_losses_take_a_few_floats():
    mean = ExactMean.of(x / 4096 for x in range(1_000_000))
    assert len(json.dumps(Progress(losses=mean).to_json())) < 300
    assert mean.value() == 499_999.5 / 4096


@given(st.lists(st.floats(0, 10), min_size=1))
def test_the_best_is_the_lowest_and_its_age_is_counted(losses):
    past = Validation(None, 0)
    better = [past.update_best(loss) for loss in losses]
    assert past.best == min(losses)
    assert past.since_best == len(losses) - 1 - losses.index(min(losses))
    assert better == [loss < min([math.inf, *losses[:i]]) for i, loss in enumerate(losses)]
