"""Invariant 4 on eight devices: a run that is stopped and resumed is the run that was not."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from charjax.errors import InterruptedRunError
from charjax.train.loop import train
from charjax.train.metrics import read_metrics
from charjax.workdir import Workdir

from .tiny import Recorder, at_step, newest, outcome, stop_when

pytestmark = pytest.mark.usefixtures("eight_devices")


@pytest.fixture(scope="module")
def whole(config, eight_devices, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    shown = Recorder()
    train(config, folder, shown)
    assert any("8 x cpu" in line for line in shown.lines)
    return folder


@pytest.fixture(scope="module")
def stopped(config, eight_devices, tmp_path_factory) -> Path:
    """The same run, stopped before its end."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(InterruptedRunError):
        train(config, folder, Recorder(stop_when(signal.SIGTERM, at_step(10))))
    assert 10 <= newest(folder).step < 40
    return folder


def test_a_stopped_and_resumed_run_is_the_run_that_was_not(config, whole, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "jit")
    train(config, folder, Recorder())
    assert outcome(folder) == outcome(whole)


def assert_close_to(whole: Path, folder: Path) -> None:
    found, wanted = (read_metrics(Workdir(of).metrics) for of in (folder, whole))
    for key in ("train_loss", "grad_norm"):
        np.testing.assert_allclose([r[key] for r in found], [r[key] for r in wanted], rtol=1e-4)


def test_devices_that_slice_their_own_batches_train_as_with_the_hosts(
    config, whole, stopped, tmp_path, monkeypatch
):
    # As on a GPU: on a CPU the host makes the batches.
    message = "batches: the devices slice them"
    monkeypatch.setattr("charjax.train.run.device_tokens", lambda _, text: (text.ids, message))
    once, twice = (shutil.copytree(stopped, tmp_path / name) for name in ("once", "twice"))
    shown = Recorder()
    train(config, once, shown)
    assert message in shown.lines
    assert_close_to(whole, once)  # another program of the same numbers
    with pytest.raises(InterruptedRunError):
        train(config, twice, Recorder(stop_when(signal.SIGTERM, at_step(20))))
    train(config, twice, Recorder())
    assert outcome(twice) == outcome(once)


def test_pmap_trains_as_jit_does_and_goes_on_from_its_checkpoint(config, whole, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "pmap")
    train(replace(config, parallel=replace(config.parallel, backend="pmap")), folder, Recorder())
    assert_close_to(whole, folder)
