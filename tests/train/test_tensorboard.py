"""Events for TensorBoard: what a resumed run writes again replaces what was written before."""

from __future__ import annotations

import errno
import os
import struct
import sys

import pytest

from charjax.errors import HostError, InputError
from charjax.train.metrics import MetricsLog, read_metrics
from charjax.train.tensorboard import open_events

from .tiny import config_of

RECORD = {"step": 20, "train_loss": 2.0, "val_loss": 2.5, "val_bpc": 3.6067376022224087}


def read_events(folder):
    """The events of all files, oldest first."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    events = []
    for file in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime):
        data = file.read_bytes()
        while data:  # records of TFRecord: length, checksum, data, checksum
            (length,) = struct.unpack("<Q", data[:8])
            events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def shown(events):
    """(step, name) of all values that TensorBoard shows: a start purges later steps before it."""
    values = []
    for event in events:
        if event.HasField("session_log"):
            values = [(step, tag) for step, tag in values if step < event.step]
        values += [(event.step, value.tag) for value in event.summary.value]
    return values


def test_records_samples_and_hyper_parameters_are_written_at_once(tmp_path):
    """So that a run that is killed has the events from before its checkpoint."""
    pytest.importorskip("tensorboardX")
    events = open_events(tmp_path, config_of(), first_step=0)
    log = MetricsLog(tmp_path / "metrics.jsonl", events)
    log.write(RECORD)
    log.add_text("sample, temperature 0.5", "one\n  *two*", 20)
    assert read_metrics(tmp_path / "metrics.jsonl") == [RECORD]
    found = read_events(tmp_path)
    assert {(20, name) for name in ("train_loss", "val_loss", "val_bpc")} < set(shown(found))
    (text,) = (v for e in found for v in e.summary.value if "sample" in v.tag)
    assert b"    one\n      *two*" in text.SerializeToString()
    (hparams,) = (
        value.metadata.plugin_data.content
        for event in found
        for value in event.summary.value
        if value.tag == "_hparams_/session_start_info"
    )
    assert b"optim.learning_rate" in hparams


def test_steps_that_a_resumed_run_repeats_are_dropped(tmp_path):
    """Build 5."""
    pytest.importorskip("tensorboardX")
    for first_step, steps in ((0, (10, 20, 30)), (21, (30, 40))):
        events = open_events(tmp_path, config_of(), first_step=first_step)
        log = MetricsLog(None, events)
        for step in steps:
            log.write({"step": step, "train_loss": 1.0})
    losses = [step for step, tag in shown(read_events(tmp_path)) if tag == "train_loss"]
    assert losses == [10, 20, 30, 40]


def test_a_full_disk_ends_a_run_that_writes_events(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    events = open_events(tmp_path, config_of(), first_step=0)

    def full(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(HostError, match=r"tensorboard/events.*No space left.*free disk space"):
        MetricsLog(None, events).write(RECORD)


def test_events_without_their_package_are_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"config\.train\.tensorboard=True.*pip install"):
        open_events(tmp_path, config_of(), first_step=0)
