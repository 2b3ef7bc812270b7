"""Samples that start and end at different times in a running batch are those of the sampler."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from charjax.errors import InputError
from charjax.inference.options import Sampling
from charjax.inference.sampling.sampler import Sampler
from charjax.inference.sampling.slots import IDLE, SlotBatch
from tests.inference.scripted import random_model

CONFIG, PARAMS = random_model(11, hidden=50)
# int8 matmuls are exact: a row gets the same bits in a batch of any size.
SAMPLER = Sampler(replace(CONFIG, dtype="int8", recurrence="xla"), PARAMS, masked=10, exempt=9)
NEUTRAL = Sampling(seed=3)
ALL_ON = Sampling(
    **{"seed": 4, "temperature": 1.5, "top_k": 7, "top_p": 0.9, "min_p": 0.05},
    **{"repetition_penalty": 1.3, "repetition_window": 5, "logit_bias": ((2, -np.inf), (3, 2.0))},
)


def expected(prompt, sampling, *, number=0, num_chars=30):
    """The ids of one sample, from `Sampler`."""
    groups = SAMPLER(
        np.array(prompt, np.int32), num_chars=num_chars, num_samples=number + 1, sampling=sampling
    )
    return np.concatenate([np.concatenate(list(group), axis=1) for group in groups])[number]


def sampled_ids(batch, slot, num_chars, steps=8):
    """The next sampled ids of a slot."""
    ids = np.empty(0, np.int32)
    while ids.size < num_chars:
        sampled, positions = batch.advance(steps)
        ids = np.append(ids, sampled.ids[slot][positions[slot] >= 0])
    return ids[:num_chars]


@pytest.mark.parametrize("sampling", [NEUTRAL, ALL_ON])
def test_a_sample_that_another_batch_started_goes_on(sampling):
    whole = expected([1, 2, 3], sampling)
    batch = SlotBatch(SAMPLER, 3)
    batch.start(1, np.array([1, 2, 3], np.int32), sampling, sampled=whole[:7])
    np.testing.assert_array_equal(sampled_ids(batch, 1, 30), whole)


def test_rows_that_start_at_different_times_are_the_samplers_samples():
    batch = SlotBatch(SAMPLER, 3)
    requests = {
        0: ([1, 2, 3], NEUTRAL, 0),
        1: ([5], replace(NEUTRAL, seed=9, temperature=0.7), 2),
        2: (list(range(9)) * 3, ALL_ON, 1),
    }
    written = {slot: np.empty(0, np.int32) for slot in requests}
    for start in (0, 1, 2, None, None, None, None, None):
        if start is not None:
            prompt, sampling, number = requests[start]
            batch.start(start, np.array(prompt, np.int32), sampling, number=number)
        sampled, positions = batch.advance(8)
        for slot, ids in written.items():
            written[slot] = np.append(ids, sampled.ids[slot][positions[slot] >= 0])
    for slot, (prompt, sampling, number) in requests.items():
        ids = written[slot][:30]
        assert ids.size > 10
        wanted = expected(prompt, sampling, number=number)[: ids.size]
        np.testing.assert_array_equal(ids, wanted)


def test_a_slot_is_used_again_and_an_idle_one_disturbs_nobody():
    batch = SlotBatch(SAMPLER, 2)
    batch.start(1, np.array([4, 4], np.int32), ALL_ON)
    assert (batch.advance(8)[1][0] == IDLE).all()
    batch.free(1)
    batch.advance(8)
    batch.start(1, np.array([6], np.int32), replace(ALL_ON, seed=8), number=3)
    wanted = expected([6], replace(ALL_ON, seed=8), number=3)
    np.testing.assert_array_equal(sampled_ids(batch, 1, 30), wanted)


@pytest.mark.parametrize("other", [NEUTRAL, ALL_ON])
def test_a_neutral_row_gets_what_it_gets_without_options(other):
    batch = SlotBatch(SAMPLER, 2)
    batch.start(0, np.array([1], np.int32), NEUTRAL)
    batch.start(1, np.array([1], np.int32), other)
    np.testing.assert_array_equal(sampled_ids(batch, 0, 30), expected([1], NEUTRAL))


def test_log_probabilities_are_the_models_and_change_no_text():
    plain, with_logprobs = SlotBatch(SAMPLER, 2), SlotBatch(SAMPLER, 2, num_top=11)
    for batch in (plain, with_logprobs):
        batch.start(0, np.array([1, 2], np.int32), ALL_ON)
    without, _ = plain.advance(8)
    sampled, positions = with_logprobs.advance(8)
    np.testing.assert_array_equal(sampled.ids[0], without.ids[0])
    assert positions[0].tolist() == list(range(-1, 7))
    assert sampled.top_ids.shape == sampled.top_logprobs.shape == (2, 8, 11)
    assert (np.diff(sampled.top_logprobs[0]) <= 0).all()
    # The masked token has its part of the probability, although it is never sampled.
    np.testing.assert_allclose(np.exp(sampled.top_logprobs[0]).sum(1), 1, rtol=1e-5)
    assert 10 not in sampled.ids[0]
    for token, logprob, *top in zip(*(leaf[0] for leaf in sampled), strict=True):
        assert dict(zip(*top, strict=True))[token] == logprob


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([11], {}, "id 11"),
        ([1], {"sampled": np.array([11], np.int32)}, "id 11"),
        ([1], {"logit_bias": ((11, 1.0),)}, "logit_bias of token 11"),
        ([1], {"logit_bias": [(i, -np.inf) for i in range(10)]}, "every token is forbidden"),
    ],
)
def test_what_cannot_be_sampled_is_refused(prompt, options, message):
    sampling = Sampling(logit_bias=tuple(options.pop("logit_bias", ())))
    with pytest.raises(InputError, match=message):
        SlotBatch(SAMPLER, 1).start(0, np.array(prompt, np.int32), sampling, **options)
