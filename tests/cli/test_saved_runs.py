"""Runs that are stopped, changed or bounded, by the public command."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from charjax.cli.main import main
from charjax.train.metrics import read_metrics

# ml_collections loads config files by a function that Python deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIG = """
from charjax.config import (
    Config, DataConfig, ModelConfig, SampleConfig, TrainConfig, to_config_dict
)

def get_config():
    return to_config_dict(Config(
        data=DataConfig(batch_size=8, seq_len=8),
        model=ModelConfig(cell="rnn", hidden=8, embed=4),
        train=TrainConfig(max_steps=40, eval_every=20, log_every=20),
        sample=SampleConfig(num_chars=0),
    ))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A config file and two texts of the same characters, one hard to predict and one easy."""
    path = tmp_path_factory.mktemp("runs")
    (path / "config.py").write_text(CONFIG, encoding="utf-8")
    draw = random.Random(0)
    letters = "abcdefgh\n"
    (path / "easy.txt").write_text(letters * 500, encoding="utf-8")
    (path / "hard.txt").write_text(letters + "".join(draw.choices(letters, k=4491)), "utf-8")
    return path


def flags(folder: Path, workdir: Path, text: str, *more: str) -> list[str]:
    command = ["train", f"--config={folder}/config.py", f"--workdir={workdir}"]
    return [*command, f"--config.data.path={folder}/{text}.txt", *more]


def info(workdir: Path, capfd) -> dict[str, object]:
    capfd.readouterr()
    assert main(["info", f"--workdir={workdir}"]) == 0
    values: dict[str, object] = json.loads(capfd.readouterr().out)
    return values


def test_another_text_starts_another_record_of_the_best(folder, tmp_path, capfd):
    """Case F1."""
    assert main(flags(folder, tmp_path, "easy")) == 0
    easy = info(tmp_path, capfd)
    more = ["--config.train.max_steps=80", "--config.train.patience=2", "--allow=corpus"]
    assert main(flags(folder, tmp_path, "hard", *more)) == 0
    assert "another text; the best loss and train.patience start anew" in capfd.readouterr().out
    hard = info(tmp_path, capfd)
    assert hard["val_loss"] > easy["val_loss"]  # and is the best all the same
    assert hard["step"] in (60, 80)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r.get("val_record", 0) for r in records] == [0, 0, 1, 1]
    # The same text again goes on with its record.
    more[0] = "--config.train.max_steps=100"
    assert main(flags(folder, tmp_path, "hard", *more)) == 0
    assert "start anew" not in capfd.readouterr().out
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["val_record"] == 1


def test_patience_counts_from_the_first_evaluation_on_another_text(folder, tmp_path, capfd):
    """Case F1."""
    assert main(flags(folder, tmp_path, "easy")) == 0
    more = ["--config.train.max_steps=200", "--config.train.patience=3"]
    frozen = ["--config.optim.learning_rate=0.0", "--allow=corpus,config.optim.learning_rate"]
    assert main(flags(folder, tmp_path, "hard", *more, *frozen)) == 0
    assert "no better validation loss in 3 evaluations" in capfd.readouterr().out
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 120  # 60 is the best, not 40


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
    ],
)
@pytest.mark.parametrize("allowed", [False, True])
def test_a_remedy_is_offered_only_where_it_works(change, remedy, allowed, folder, tmp_path, capfd):
    """Case F9."""
    assert main(flags(folder, tmp_path, "easy", "--config.train.max_steps=10")) == 0
    name = change.partition("=")[0]
    allow = [f"--allow=config.{name},vocabulary"] if allowed else []
    code = main(flags(folder, tmp_path, "easy", f"--config.{change}", *allow))
    assert code == (0 if remedy and allowed else 2)
    said = capfd.readouterr().err
    assert ("--allow" in said) == (remedy and not allowed)
    assert code == 0 or f"config.{name} was" in said
    assert said.count("\n") <= 1


def test_a_run_that_has_more_steps_than_it_is_asked_for_says_so(folder, tmp_path, capfd):
    """Case F26."""
    assert main(flags(folder, tmp_path, "easy")) == 0
    assert main(flags(folder, tmp_path, "easy", "--config.train.max_steps=20")) == 0
    assert "ended: 40 steps are done, more than the 20 that are asked for" in capfd.readouterr().out


def test_a_limit_that_hides_another_is_said_to(folder, tmp_path, capfd):
    """Case F28."""
    assert main(flags(folder, tmp_path, "easy", "--config.train.max_epochs=300")) == 0
    assert "train.max_steps=40" in capfd.readouterr().out.partition("comes before")[0]


def test_a_huge_dispatch_is_bounded(folder, tmp_path, capfd):
    """Case E2."""
    every = [f"--config.train.{name}=1000000" for name in ("eval_every", "log_every")]
    limits = ["--config.train.max_steps=0", "--config.train.max_minutes=0.01"]
    dispatch = "--config.train.steps_per_dispatch=2000000000"
    assert main(flags(folder, tmp_path, "easy", *every, *limits, dispatch)) == 0
    assert "at most 1,000 steps instead of" in capfd.readouterr().out


def test_an_evaluation_reads_as_much_as_it_is_asked_to(folder, tmp_path, capfd):
    """Case E1."""
    assert main(flags(folder, tmp_path, "hard", "--config.data.eval_chars=100")) == 0
    assert "validation: 100 of the 450 characters" in capfd.readouterr().out
    assert main(flags(folder, tmp_path, "hard", "--config.train.max_steps=60")) == 0
    assert "start anew" in capfd.readouterr().out  # another part of the text


def test_a_signal_stops_an_evaluation_and_the_run_is_saved(folder, tmp_path):
    """Case E1: within two seconds on an idle machine."""
    (tmp_path / "long.txt").write_text("the cat sat on the mat\n" * 200_000, encoding="utf-8")
    more = ["--config.data.path=" + str(tmp_path / "long.txt"), "--config.model.cell=gru"]
    more += ["--config.model.hidden=256", "--config.train.max_steps=10"]
    command = [sys.executable, "-m", "charjax", *flags(folder, tmp_path / "run", "easy", *more)]
    with subprocess.Popen(
        [*command, "--config.data.split=(0.1,0.9,0)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        # The checkpoint before the evaluation.
        while not (tmp_path / "run" / "checkpoints" / "10").exists():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        sent_at = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
        seconds = time.monotonic() - sent_at
    assert process.returncode == 143, errors
    assert b"stopped at step 10" in errors
    assert seconds < 10
    assert not read_metrics(tmp_path / "run" / "metrics.jsonl")
