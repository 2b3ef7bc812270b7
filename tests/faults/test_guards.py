"""Checks that protect a run: allowed changes by name, damaged files kept, memory limits."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from charjax.checkpoint.checkpoints import Checkpoints
from charjax.cli.main import main
from charjax.config import Config
from charjax.errors import CheckpointError, HostError, InputError
from charjax.runtime.files import append_content
from charjax.runtime.signals import exit_on_signals
from charjax.train.loop import train
from charjax.train.metrics import read_metrics
from charjax.train.resume import check_allowed
from charjax.workdir import Workdir
from tests.train.tiny import Recorder

from .trial import leaf_digests, small_config, write_words


def config_of(tmp_path, *, steps: int = 4, **optim: object) -> Config:
    text = write_words(tmp_path / "text.txt", 300)
    config = small_config(text, max_steps=steps, eval_every=4, checkpoint_every=2)
    return replace(config, optim=replace(config.optim, **optim))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(config_of(folder), folder / "run", Recorder())
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def test_a_change_is_refused_until_it_is_allowed_by_name(copy):
    changed = config_of(copy, steps=6, learning_rate=1e-3)
    with pytest.raises(InputError, match=r"learning_rate was 0\.002, now 0\.001.*--allow=config"):
        train(changed, copy / "run", Recorder())
    with pytest.raises(InputError, match="holds another run"):
        train(changed, copy / "run", Recorder(), allow=["corpus", "config.optim.b1"])
    display = Recorder()
    progress = train(changed, copy / "run", display, allow=["config.optim.learning_rate"])
    assert "step 6" in progress.ended
    assert any(line.startswith("allowed: config.optim.learning_rate") for line in display.lines)


def test_a_changed_vocabulary_names_each_character(copy):
    changed = config_of(copy, steps=6)
    text = copy / "text.txt"
    text.write_text(text.read_text().replace("c", "日"))
    with pytest.raises(InputError, match=r"lost U\+0063; gained U\+65E5.*corpus,vocabulary"):
        train(changed, copy / "run", Recorder())


def test_sections_and_fields_can_be_allowed_and_no_other_names():
    check_allowed(["config.optim", "config.model.hidden", "config.seed", "corpus", "vocabulary"])
    near = {"config.optim.learning_rat": "config.optim.learning_rate", "corpsu": "corpus", "1": ""}
    for name, hint in near.items():
        with pytest.raises(InputError, match=f"--allow={name}: .*{hint}"):
            check_allowed([name])
    with pytest.raises(InputError, match=r"^allow='corpus': is one string; give a list"):
        check_allowed("corpus")


def test_where_nothing_verifies_a_run_does_not_start_again(copy):
    checkpoints = Workdir(copy / "run").checkpoints
    for record in checkpoints.glob("*/meta/record.json"):
        record.write_bytes(record.read_bytes()[:-9])
    before = sorted(checkpoints.rglob("*"))
    metrics = Workdir(copy / "run").metrics.read_bytes()
    with pytest.raises(CheckpointError, match="no checkpoint that verifies"):
        train(config_of(copy, steps=6), copy / "run", Recorder())
    assert sorted(checkpoints.rglob("*")) == before
    assert Workdir(copy / "run").metrics.read_bytes() == metrics


def test_damaged_evidence_is_set_aside_and_the_run_ends_in_the_same_bits(trained, copy):
    checkpoints = Workdir(copy / "run").checkpoints
    record = checkpoints / "4" / "meta" / "record.json"
    damaged = record.read_bytes().replace(b"sha", b"SHA")
    record.write_bytes(damaged)
    train(config_of(copy), copy / "run", Recorder())
    assert leaf_digests(copy / "run", 4) == leaf_digests(trained / "run", 4)
    aside = checkpoints / "4.damaged-1"
    assert (aside / "meta" / "record.json").read_bytes() == damaged
    with Checkpoints(checkpoints) as saved:
        assert saved.verify() == [(2, ""), (4, "")]


def test_a_damaged_run_json_is_written_anew(trained, copy):
    folder = Workdir(copy / "run")
    good = json.loads(folder.run_json.read_bytes())
    folder.run_json.write_bytes(b"{\xff")
    train(config_of(trained), folder.path, Recorder())
    assert json.loads(folder.run_json.read_bytes()) == good


def test_a_torn_record_is_cut_off_when_the_run_goes_on(trained, copy):
    folder = Workdir(copy / "run")
    whole = read_metrics(folder.metrics)
    append_content(folder.metrics, b'{"step": 5, "train_lo')
    train(config_of(copy), folder.path, Recorder())
    assert read_metrics(folder.metrics) == whole


def test_arrays_larger_than_the_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as saved:
        saved.save(1, {"params": np.ones(1000, np.float32)}, {}, val_loss=None)
        monkeypatch.setattr(os, "sysconf", lambda name: 60)
        with pytest.raises(HostError, match=r"1: arrays: take 4000 bytes, .* has 3600 of memory;"):
            saved.verify()


def test_an_argument_that_is_no_utf8_is_bad_input(capsys):
    assert main(["sample", "--workdir=x", "--prompt=a\udcff"]) == 2
    assert capsys.readouterr().err == (
        "charjax: --prompt=a\\udcff: not valid UTF-8; write the argument in UTF-8\n"
    )


def test_a_full_disk_names_the_log(tmp_path, monkeypatch):
    def full(path: Path, flags: int, mode: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(HostError, match=f"{tmp_path}/log: No space left.*free disk space"):
        append_content(tmp_path / "log", b"a line")


def test_the_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with exit_on_signals(pytest.fail):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_nothing_in_a_folder_is_run(copy):
    """A folder full of programs is sampled from as if they were not there."""
    run, trap = copy / "run", copy / "trap"
    for name in ("config.py", "sitecustomize.py", "charjax.py", "checkpoints/__init__.py"):
        (run / name).write_text(f"open({str(trap)!r}, 'w')")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"__class__": "os.system"}))
    assert main(["sample", f"--workdir={run}", "--num_chars=2"]) == 0
    assert not trap.exists()
    assert os.path.exists(run / "run.json")
