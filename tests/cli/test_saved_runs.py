"""Runs that are stopped, changed or bounded, by the public command."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from charjax.cli.main import main
from charjax.config import Config, DataConfig, ModelConfig, SampleConfig, TrainConfig, to_dict
from charjax.schema import leaves
from charjax.train import loop
from charjax.train.metrics import read_metrics
from charjax.train.resume import _MAY_CHANGE, _MUST_STAY
from tests.faults.trial import write_config

# ml_collections loads config files by a function that Python deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIG = Config(
    data=DataConfig(batch_size=8, seq_len=8),
    model=ModelConfig(cell="rnn", hidden=8, embed=4),
    train=TrainConfig(max_steps=40, eval_every=20, log_every=20),
    sample=SampleConfig(num_chars=0),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A config file and two texts of the same characters, one hard to predict and one easy."""
    path = tmp_path_factory.mktemp("runs")
    write_config(path / "tiny.py", CONFIG)
    draw = random.Random(0)
    letters = "abcdefgh\n"
    (path / "easy.txt").write_text(letters * 500 + "ag", encoding="utf-8")
    (path / "hard.txt").write_text(letters + "".join(draw.choices(letters, k=4491)), "utf-8")
    return path


def flags(folder: Path, workdir: Path, text: str, *more: str) -> list[str]:
    command = ["train", f"--config={folder}/tiny.py", f"--workdir={workdir}"]
    return [*command, f"--config.data.path={folder}/{text}.txt", *more]


def info(workdir: Path, capfd) -> dict[str, object]:
    capfd.readouterr()
    assert main(["info", f"--workdir={workdir}"]) == 0
    values: dict[str, object] = json.loads(capfd.readouterr().out)
    return values


def test_another_text_starts_another_record_of_the_best(folder, tmp_path, capfd):
    assert main(flags(folder, tmp_path, "easy")) == 0
    easy = info(tmp_path, capfd)
    more = ["--config.train.max_steps=80", "--config.train.patience=2", "--allow=corpus"]
    assert main(flags(folder, tmp_path, "hard", *more)) == 0
    assert (
        "the text has changed; best loss and train.patience start again" in capfd.readouterr().out
    )
    hard = info(tmp_path, capfd)
    assert hard["val_loss"] > easy["val_loss"]  # and is the best all the same
    assert hard["step"] in (60, 80)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r.get("val_record", 0) for r in records] == [0, 0, 1, 1]
    # The same text again goes on with its record.
    more[0] = "--config.train.max_steps=100"
    assert main(flags(folder, tmp_path, "hard", *more)) == 0
    assert "start again" not in capfd.readouterr().out
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["val_record"] == 1


def test_patience_counts_from_the_first_evaluation_on_another_text(folder, tmp_path, capfd):
    assert main(flags(folder, tmp_path, "easy")) == 0
    more = ["--config.train.max_steps=200", "--config.train.patience=3"]
    frozen = ["--config.optim.learning_rate=0.0", "--allow=corpus,config.optim.learning_rate"]
    assert main(flags(folder, tmp_path, "hard", *more, *frozen)) == 0
    assert "no better validation loss in 3 evaluations" in capfd.readouterr().out
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 120  # 60 is the best, not 40


@pytest.fixture(scope="module")
def ten_steps(folder, tmp_path_factory) -> Path:
    """The folder of a run of ten steps on the easy text."""
    workdir: Path = tmp_path_factory.mktemp("ten_steps")
    assert main(flags(folder, workdir, "easy", "--config.train.max_steps=10")) == 0
    return workdir


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ("model.hidden=16", False),
        ("model.cell=gru", False),
        ("model.embed=5", False),
        ("data.batch_size=16", False),
        ("optim.name=sgd", False),
        ("data.unk=True", False),
        ("optim.learning_rate=0.5", True),
        ("data.seq_len=16", True),
        ("data.documents=files", False),  # the boundary is one token more
        ("data.documents=lines", True),  # it replaces the newline
    ],
)
@pytest.mark.parametrize("allowed", [False, True])
def test_a_remedy_is_offered_only_where_it_works(
    change, remedy, allowed, folder, ten_steps, tmp_path, capfd
):
    workdir = tmp_path / "run"
    shutil.copytree(ten_steps, workdir)
    name = change.partition("=")[0]
    allow = [f"--allow=config.{name},corpus,vocabulary"] if allowed else []
    code = main(flags(folder, workdir, "easy", f"--config.{change}", *allow))
    assert code == (0 if remedy and allowed else 2)
    said = capfd.readouterr().err
    assert ("--allow" in said) == (remedy and not allowed)
    assert code == 0 or f"config.{name} was" in said
    assert said.count("\n") <= 1


def test_a_run_on_another_text_is_refused_by_the_paths_of_both(folder, ten_steps, capfd):
    assert main(flags(folder, ten_steps, "hard")) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert re.search(f"{folder}/easy.txt, .*; now {folder}/hard.txt, .*--allow=corpus", line)


# What a change needs beside it, and values that are not made from the default.
NEEDS = {
    "data.delimiter": "data.documents=delimiter",
    "data.boundary": "data.documents=lines",
    "data.shuffle_documents": "data.documents=lines",
    "data.split_by": "data.documents=lines data.split=(1.0,0.0,0.0)",  # all lines are equal
    "data.columns": "data.documents=rows",
    "data.header": "data.documents=rows",
    "data.csv_delimiter": "data.documents=rows",
    "data.stride": "data.batching=sliding",
    "data.targets": "data.batching=windows",
    "data.keep_partial": "data.batching=windows",
    "data.stateful": "data.batching=windows",
    "data.window_order": "data.batching=windows",
    "model.dropout_between": "model.layers=2",
    "optim.final": "optim.schedule=cosine",
    "optim.imported_rate": "train.init_from=moved",
    "train.init_characters": "train.init_from=moved",
    "train.scheduled_ramp": "train.scheduled_sampling=0.5",
}
VALUES = {
    "data.corpus": "python_docs",
    "data.encoding": "latin-1",
    "data.start": "abc",
    "data.batch_size": "16",
    "data.end": "ag",  # the end of the text
    "data.delimiter": "h",
    "data.columns": "0",
    "data.csv_delimiter": "d",
    "data.window_order": "keyed",  # auto is resolved to a table
    "data.split": "(0.8,0.2,0.0)",
    "data.documents": "files",
    "optim.eps": "1e-6",
    "optim.freeze": "output",
}


def changed_fields() -> Iterator[tuple[str, str]]:
    """(field, another value) of every field that a resumed run must keep."""
    for name, default in leaves(to_dict(Config())):
        if name.startswith(_MAY_CHANGE) and not name.startswith(_MUST_STAY):
            continue
        section, _, last = name.rpartition(".")
        schema = getattr(Config(), section) if section else Config()
        (field,) = (f for f in dataclasses.fields(schema) if f.name == last)
        if name in VALUES:
            value = VALUES[name]
        elif "choices" in field.metadata:
            value = next(choice for choice in field.metadata["choices"] if choice != default)
        elif isinstance(default, bool):
            value = str(not default)
        else:
            value = str(default + 1 if isinstance(default, int) else 0.5)
        yield name, value


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), list(changed_fields()))
def test_for_every_field_the_remedy_that_is_offered_works(
    name, value, folder, ten_steps, tmp_path, capfd
):
    workdir = tmp_path / "run"
    shutil.copytree(ten_steps, workdir)
    needs = [f"--config.{need}" for need in NEEDS.get(name, "").split()]
    change = flags(folder, workdir, "easy", f"--config.{name}={value}", *needs)
    capfd.readouterr()
    assert main(change) == 2
    refused = capfd.readouterr().err
    assert f"{workdir}: holds another run: " in refused
    offered = re.search(r"go on with --allow=(\S+),", refused)
    assert bool(offered) != ("the saved arrays do not fit" in refused)
    sections = ["seed", "data", "model", "optim", "train"]
    everything = ",".join(["corpus", "vocabulary", *(f"config.{name}" for name in sections)])
    assert main([*change, f"--allow={offered[1] if offered else everything}"]) == (
        0 if offered else 2
    ), refused + capfd.readouterr().err


def test_a_run_that_has_more_steps_than_it_is_asked_for_says_so(folder, tmp_path, capfd):
    assert main(flags(folder, tmp_path, "easy")) == 0
    assert main(flags(folder, tmp_path, "easy", "--config.train.max_steps=20")) == 0
    assert "ended: 40 steps are done, more than the limit of 20" in capfd.readouterr().out


def test_a_limit_that_hides_another_is_said_to(folder, tmp_path, capfd):
    assert main(flags(folder, tmp_path, "easy", "--config.train.max_epochs=300")) == 0
    assert "train.max_steps=40" in capfd.readouterr().out.partition("comes before")[0]


def test_what_is_saved_does_not_grow_between_two_records(folder, tmp_path):
    """Losses of all steps since the last record of the metrics were saved."""
    never = ["--config.train.log_every=1000000", "--config.train.eval_every=1000000"]
    saves = ["--config.train.max_steps=1000", "--config.train.checkpoint_every=200"]
    assert main(flags(folder, tmp_path, "hard", *never, *saves, "--config.train.keep=9")) == 0
    records = tmp_path.glob("checkpoints/*/meta/record.json")
    sizes = {int(path.parts[-3]): path.stat().st_size for path in records}
    assert len(sizes) == 5
    assert sizes[1000] < sizes[200] + 500


def test_a_huge_dispatch_is_bounded(folder, tmp_path, capfd):
    every = [f"--config.train.{name}=1000000" for name in ("eval_every", "log_every")]
    limits = ["--config.train.max_steps=0", "--config.train.max_minutes=0.01"]
    dispatch = "--config.train.steps_per_dispatch=2000000000"
    assert main(flags(folder, tmp_path, "easy", *every, *limits, dispatch)) == 0
    assert "at most 1,000 steps instead of" in capfd.readouterr().out


def test_an_evaluation_reads_as_much_as_it_is_asked_to(folder, tmp_path, capfd):
    assert main(flags(folder, tmp_path, "hard", "--config.data.eval_chars=100")) == 0
    assert "validation: 100 of the 450 characters" in capfd.readouterr().out
    assert main(flags(folder, tmp_path, "hard", "--config.train.max_steps=60")) == 0
    assert "start again" in capfd.readouterr().out  # another part of the text


@contextlib.contextmanager
def terminated_in(name: str) -> Iterator[None]:
    """Sends this process SIGTERM as a function of the loop begins."""
    function = getattr(loop, name)

    def signal_and_call(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, name, signal_and_call)
        yield


def test_a_signal_stops_samples_and_the_resumed_run_writes_them(folder, tmp_path, capfd):
    sample = ["--config.sample.num_chars=3", "--config.sample.temperatures=(1.0,)"]
    command = flags(folder, tmp_path, "easy", "--config.train.max_steps=20", *sample)
    logs = [tmp_path / name for name in ("metrics.jsonl", "samples.txt")]
    with terminated_in("generate_samples"):
        assert main(command) == 143
    assert "stopped at step 20" in capfd.readouterr().err
    assert not logs[1].exists()
    val_loss, written = info(tmp_path, capfd)["val_loss"], logs[0].read_bytes()
    assert val_loss is not None
    for _ in range(2):  # the second time there is nothing left to do
        assert main(command) == 0
        assert logs[1].read_text().startswith("=== step 20, temperature 1 ===\n")
        assert logs[1].read_text().count("===") == 2
    assert info(tmp_path, capfd)["val_loss"] == val_loss
    assert logs[0].read_bytes() == written


def test_a_signal_stops_an_evaluation_and_the_run_is_saved(folder, tmp_path, capfd):
    with terminated_in("validate"):
        assert main(flags(folder, tmp_path, "easy", "--config.train.max_steps=10")) == 143
    assert "stopped at step 10" in capfd.readouterr().err
    assert (tmp_path / "checkpoints" / "10").is_dir()
    assert not read_metrics(tmp_path / "metrics.jsonl")


def test_what_a_signal_left_of_a_step_is_done_though_the_validation_text_has_changed(
    folder, tmp_path, capfd
):
    sample = ["--config.sample.num_chars=3", "--config.sample.temperatures=(1.0,)"]
    for name in ("validate", "generate_samples"):
        command = flags(folder, tmp_path / name, "hard", "--config.train.max_steps=20", *sample)
        with terminated_in(name):
            assert main(command) == 143
        before = info(tmp_path / name, capfd)["val_loss"]
        assert main([*command, "--config.data.eval_chars=100"]) == 0
        assert "the text has changed" in capfd.readouterr().out
        assert (tmp_path / name / "samples.txt").read_text().count("===") == 2
        (record,) = read_metrics(tmp_path / name / "metrics.jsonl")
        # A loss is one of the text on which it was measured.
        if before is None:
            assert record["val_record"] == 1
            assert info(tmp_path / name, capfd)["val_loss"] == record["val_loss"]
        else:
            assert "val_record" not in record
            assert info(tmp_path / name, capfd)["val_loss"] is None
