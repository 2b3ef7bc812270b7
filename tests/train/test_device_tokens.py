"""Steps that slice their batches from tokens on the devices, and when they do."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from charjax.config import Config, DataConfig, ParallelConfig
from charjax.data.batches import Slices, TokenSplit, make_batches, read_slices
from charjax.data.read_ahead import ReadAhead
from charjax.train import device_tokens

SIZE, LENGTH, BOUNDARY = 128, 5, 0


def text_of(boundary_id: int | None) -> TokenSplit:
    """Random tokens in documents, of which some are shorter than a window."""
    random = np.random.default_rng(0)
    starts = np.array([0, 1, 4, 30, 33, 60, 61, 100]) * (boundary_id is not None)
    ids = random.integers(1, 7, SIZE, dtype=np.uint8)
    ids[[*starts, -1] if boundary_id is not None else []] = BOUNDARY
    return TokenSplit(ids, np.unique(starts).astype(np.int64), boundary_id)


on_device = jax.jit(partial(read_slices, length=LENGTH))


@pytest.mark.parametrize("boundary_id", [None, BOUNDARY])
@pytest.mark.parametrize(
    "fields",
    [
        {"batching": "stream"},
        {"batching": "windows", "window_order": "table"},
        {"batching": "windows", "window_order": "keyed", "keep_partial": True, "stateful": True},
        {"batching": "sliding", "stride": 2},
        {"batching": "sliding", "stride": 3, "targets": "last", "window_order": "keyed"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_a_batch_that_the_device_slices_has_the_bits_of_the_host(fields, boundary_id):
    """The last step but one of an epoch, its last, and the first two of the next; some wrap."""
    config = DataConfig(batch_size=4, seq_len=LENGTH, **fields)
    batches = make_batches(config, text_of(boundary_id), seed=3)
    for step in range(batches.steps_per_epoch - 2, batches.steps_per_epoch + 2):
        made = batches(step)
        sliced = on_device(batches.ids, batches.slices(step, slice(None)))
        for array, wanted in zip(sliced, made, strict=True):
            assert array.dtype == wanted.dtype
            np.testing.assert_array_equal(array, wanted)


def test_a_slice_may_cross_the_end_and_the_beginning_of_a_text():
    ids, zeros = np.arange(SIZE, dtype=np.uint8), np.zeros(2, np.int64)
    slices = Slices(np.array([SIZE - 3, -2]), zeros, zeros + LENGTH, zeros > 0)
    wanted = [[SIZE - 3, SIZE - 2, SIZE - 1, 0, 1], [SIZE - 2, SIZE - 1, 0, 1, 2]]
    for batch in (read_slices(ids, slices, LENGTH), on_device(ids, slices)):
        np.testing.assert_array_equal(batch.inputs, wanted)


CONFIG = Config(data=DataConfig(batch_size=4, seq_len=LENGTH))
BATCHES = make_batches(CONFIG.data, text_of(None), seed=0)


def gpus(*bytes_limits: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(memory_stats=lambda n=n: {"bytes_limit": n}) for n in bytes_limits]


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: gpus(2**30))


def test_a_gpu_has_the_tokens_where_they_fit(on_a_gpu, monkeypatch):
    ids, message = device_tokens.device_tokens(CONFIG, BATCHES)
    assert ids is BATCHES.ids
    assert message.startswith("batches: the devices slice them from 0.0 MB")
    monkeypatch.setattr(jax, "local_devices", lambda: gpus(2**30, 8 * SIZE - 1))
    ids, message = device_tokens.device_tokens(CONFIG, BATCHES)
    assert ids is None
    assert "more than 1/8 of a device's memory" in message


def test_pmap_packed_texts_and_long_ones_stay_on_the_host_and_the_run_says_why(on_a_gpu):
    pmap = replace(CONFIG, parallel=ParallelConfig(backend="pmap"))
    long = ReadAhead(BATCHES)
    long.ids = np.broadcast_to(np.uint8(0), 2**31 - LENGTH)  # takes one byte of memory
    packed = ReadAhead(BATCHES)
    packed.ids = object()
    for config, batches, why in (
        (pmap, BATCHES, "parallel.backend=pmap"),
        (CONFIG, long, "2,147,483,643 tokens"),
        (CONFIG, packed, "packed"),
    ):
        ids, message = device_tokens.device_tokens(config, batches)
        assert ids is None
        assert message.startswith("batches: made by the host, as ")
        assert why in message


def test_on_a_cpu_the_host_makes_them_as_ever():
    assert device_tokens.device_tokens(CONFIG, BATCHES) == (None, "")
