from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from charjax.checkpoint.progress import Progress
from charjax.cli.main import main
from charjax.config import Config, DataConfig, OptimConfig, to_config_dict
from charjax.errors import DivergedError, InputError, InterruptedRunError
from charjax.inference.load import load_trained
from charjax.runtime.display import make_display
from charjax.train.loop import train
from charjax.train.metrics import draw_curves, read_metrics
from charjax.train.step_metrics import StepMetricsBuffer
from charjax.workdir import Workdir
from tests.environment import with_devices
from tests.faults.trial import write_config

from .tiny import Recorder, at_step, newest, outcome, stop_when, text_of

STEPS, EVERY = 40, 20  # of a run; between its evaluations and checkpoints
EPOCH = 32  # steps
KEYS = {
    "step",
    "epoch",
    "time_s",
    "train_loss",
    "val_loss",
    "val_bpc",
    "chars_per_second",
    "flops_per_second",
    "input_stall",
    "learning_rate",
    "grad_norm",
}


@dataclass(frozen=True)
class Run:
    folder: Path
    progress: Progress
    shown: Recorder


def run(config: Config | ConfigDict, folder: Path) -> Run:
    shown = Recorder()
    return Run(folder, train(config, folder, shown), shown)


def changed(config: Config, **sections: dict[str, Any]) -> Config:
    return replace(config, **{s: replace(getattr(config, s), **f) for s, f in sections.items()})


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Run:
    """A run that nothing disturbed, with its curves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("charjax.train.loop.draw_curves", draw_curves)
        return run(config, tmp_path_factory.mktemp("finished"))


@pytest.fixture
def again(finished, tmp_path) -> Path:
    """A copy of its folder."""
    return shutil.copytree(finished.folder, tmp_path / "again")


def test_every_file_is_there_and_says_what_it_should(config, finished):
    folder = Workdir(finished.folder)
    values = json.loads(folder.run_json.read_bytes())
    assert values["config"]["model"] == json.loads(json.dumps(vars_of(config.model)))
    assert set(values["vocabulary"]["symbols"]) == set(text_of(600))
    assert values["corpus"]["name"] == config.data.path
    assert len(values["corpus"]["sha256"]) == 64
    assert values["versions"]["jax"] == jax.__version__
    assert values["device"] == jax.devices()[0].device_kind
    assert values["recurrence"] == {"implementation": "c", "reason": "the fastest here"}
    assert newest(finished.folder).meta["recurrence"] == values["recurrence"]
    assert folder.curves.read_bytes().startswith(b"\x89PNG")
    assert sorted(int(path.name) for path in folder.checkpoints.iterdir()) == [20, 40]
    titles = folder.samples.read_text(encoding="utf-8").count("=== step ")
    assert titles == len(config.sample.temperatures) * STEPS // EVERY
    assert "".join(finished.shown.texts).replace("\n", "") in folder.samples.read_text(
        encoding="utf-8"
    ).replace("\n", "")


def vars_of(section: Any) -> dict[str, Any]:
    return {name: getattr(section, name) for name in section.__slots__}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"seed": -1}, "config.seed=-1: must be from 0 to"),
        ({"optim": OptimConfig(learning_rate="0.1")}, "config.optim.learning_rate='0.1': must be"),
        ({"data": DataConfig(stateful=True)}, "config.data.stateful=True: "),
    ],
)
def test_a_config_that_python_code_got_wrong_is_refused(config, tmp_path, section, message):
    with pytest.raises(InputError) as caught:
        train(replace(config, **section), str(tmp_path / "run"))
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_the_records_have_the_keys_that_are_promised(finished):
    records = read_metrics(Workdir(finished.folder).metrics)
    assert [r["step"] for r in records] == [10, 20, 30, 40]
    for record in records:
        assert set(record) == KEYS - (
            set() if record["step"] % EVERY == 0 else {"val_loss", "val_bpc"}
        )
        assert record["epoch"] == record["step"] / EPOCH
        assert record["chars_per_second"] > 0
        assert record["flops_per_second"] > 0
        assert 0 <= record["input_stall"] <= 1
        assert record["grad_norm"] > 0
    assert [r["learning_rate"] for r in records] == pytest.approx(
        [0.01 * (STEPS - (r["step"] - 1)) / (STEPS - 4) for r in records]
    )
    assert records[1]["val_bpc"] == pytest.approx(records[1]["val_loss"] / np.log(2))
    times = [r["time_s"] for r in records]
    assert times == sorted(times)


def test_no_device_waits_for_a_record(config, tmp_path, monkeypatch):
    """The loop waits for the last dispatch where it evaluates, and reads others one late."""
    waits, flush = [0], StepMetricsBuffer.flush

    def counted(buffer):
        waits[0] += sys._getframe(1).f_code.co_name != "push"
        flush(buffer)

    monkeypatch.setattr(StepMetricsBuffer, "flush", counted)
    train(config, tmp_path)
    steps = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == list(range(config.train.log_every, STEPS + 1, config.train.log_every))
    assert config.train.log_every < EVERY
    assert waits[0] == STEPS // EVERY


def test_losses_fall_and_the_best_is_noted(finished):
    records = read_metrics(Workdir(finished.folder).metrics)
    losses = [r["train_loss"] for r in records]
    assert losses[-1] < losses[0] - 0.2
    validated = [r["val_loss"] for r in records if "val_loss" in r]
    assert finished.progress.validation.best == min(validated) == validated[-1]
    assert finished.progress.validation.since_best == 0
    assert newest(finished.folder).val_loss == finished.progress.validation.best


def test_the_person_is_told_of_the_run_and_of_what_to_do_next(finished):
    lines = finished.shown.lines
    assert any("rnn 1 x 8" in line and "1 x cpu" in line for line in lines)
    assert "recurrence: c (the fastest here)" in lines
    assert not any("one step at a time" in line for line in lines)
    assert sum(line.startswith("step ") and "nats" in line for line in lines) == 2
    assert any("step 40 of 40 is done" in line for line in lines)
    assert lines[-1].startswith("next: ")
    assert "charjax sample" in lines[-1]
    assert str(finished.folder) in lines[-1]


def test_a_finished_run_says_so_and_changes_nothing(config, finished, again):
    before = {p: p.read_bytes() for p in (Workdir(again).metrics, Workdir(again).samples)}
    before[Workdir(again).run_json] = Workdir(again).run_json.read_bytes()
    config = changed(config, train={"keep": 7, "log_every": 5})
    second = run(to_config_dict(config), again)  # what a config file returns
    assert any("step 40 of 40 is done" in line for line in second.shown.lines)
    assert second.shown.texts == []
    assert {p: p.read_bytes() for p in before} == before
    assert second.progress == replace(finished.progress, losses=second.progress.losses)
    assert outcome(again) == outcome(finished.folder)


@pytest.mark.parametrize("is_removed", [True, False])
def test_a_log_that_has_lost_what_the_run_wrote_is_named(is_removed, config, again):
    log = Workdir(again).metrics
    lines = log.read_bytes().splitlines(keepends=True)
    log.unlink() if is_removed else log.write_bytes(b"".join(lines[1:]))
    shown = run(config, again).shown.lines
    assert [line for line in shown if ": lacks some" in line] == [
        f"{log}: lacks some of what the run wrote"
    ]


def test_in_a_terminal_a_run_ends_with_a_table_and_the_next_command(config, again, terminal):
    train(config, again, make_display(terminal))
    written = terminal.getvalue()
    for part in ("step 40 of 40 is done; ", "best validation loss", "nats (", "╰─", "next: "):
        assert part in written


MOMENTS: dict[str, Callable[[str, Any], bool]] = {
    "after any steps": lambda kind, what: kind == "training",
    "between two steps": at_step(5),
    "as a log is due": at_step(10),
    "as evaluation, log, sample and checkpoint are due": at_step(20),
    "while they are done": lambda kind, what: kind == "report" and what.startswith("step 20 "),
    "as the last step ends": lambda kind, what: kind == "report" and what.startswith("step 40 "),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_interrupted_and_resumed_is_the_run_that_was_not(
    moment, config, finished, tmp_path
):
    with pytest.raises(InterruptedRunError) as stopped:
        train(config, tmp_path, Recorder(stop_when(signal.SIGTERM, MOMENTS[moment])))
    assert stopped.value.exit_code == 143
    message = str(stopped.value)
    assert message.startswith(f"{tmp_path}: ")
    assert "the same command" in message
    # It was not stopped before what it had done was saved.
    assert f"at step {newest(tmp_path).step};" in message

    second = run(config, tmp_path)
    assert outcome(tmp_path) == outcome(finished.folder)
    assert second.progress.validation.best == finished.progress.validation.best


@pytest.mark.parametrize(
    ("moment", "fields"),
    [
        ("between two steps", {"train": {"log_every": 1000}}),
        ("between two steps", {"train": {"log_every": 5}}),
        ("between two steps", {"data": {"split": (1.0, 0.0, 0.0)}}),
        ("while they are done", {"train": {"sample_every": 40}}),
        ("while they are done", {"train": {"sample_every": 20}}),
    ],
)
def test_a_run_that_was_stopped_at_what_becomes_its_last_step_ends_like_any_other(
    moment, fields, config, tmp_path
):
    config = changed(changed(config, optim={"schedule": "constant", "warmup": 0.0}), **fields)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    with pytest.raises(InterruptedRunError):
        train(config, stopped, Recorder(stop_when(signal.SIGTERM, MOMENTS[moment])))
    short = changed(config, train={"max_steps": newest(stopped).step})
    assert run(short, whole).progress.ended == run(short, stopped).progress.ended
    assert evaluations(stopped) == evaluations(whole)
    assert outcome(stopped)[1:] == outcome(whole)[1:]
    assert newest(stopped).val_loss == newest(whole).val_loss
    before = outcome(stopped)
    run(short, stopped)
    assert outcome(stopped) == before


def evaluations(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of every training and validation loss in the records."""
    records = read_metrics(Workdir(folder).metrics)
    return [(r["step"], r[key]) for key in ("train_loss", "val_loss") for r in records if key in r]


@pytest.mark.parametrize("optimizer", ["muon", "schedule_free"])
def test_a_run_of_each_optimizer_is_resumed(optimizer, config, tmp_path):
    optim = {"name": optimizer, "freeze": "embedding"}
    if optimizer == "schedule_free":
        optim |= {"schedule": "constant", "ema": 0.0}
    short = {"data": {"split": (1.0, 0.0, 0.0)}, "train": {"max_steps": 15, "eval_every": 15}}
    config = changed(config, optim=optim, sample={"num_chars": 0}, **short)
    whole, twice = tmp_path / "whole", tmp_path / "twice"
    run(config, whole)
    with pytest.raises(InterruptedRunError):
        train(config, twice, Recorder(stop_when(signal.SIGTERM, MOMENTS["between two steps"])))
    assert newest(twice).step < 15
    run(config, twice)
    assert newest(twice).leaves == newest(whole).leaves


def test_a_dtype_resolved_on_one_machine_is_kept_on_another(config, tmp_path, monkeypatch):
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    run(changed(config, model={"dtype": "bfloat16"}), whole)
    auto = changed(config, model={"dtype": "auto"})
    monkeypatch.setattr("charjax.runtime.dtypes.fast_dtype", lambda: "bfloat16")
    with pytest.raises(InterruptedRunError):
        train(auto, moved, Recorder(stop_when(signal.SIGTERM, MOMENTS["after any steps"])))
    monkeypatch.setattr("charjax.runtime.dtypes.fast_dtype", lambda: "float32")
    second = run(auto, moved)
    assert any("bfloat16 matmuls" in line for line in second.shown.lines)
    recorded = json.loads(Workdir(moved).run_json.read_bytes())
    assert recorded["config"]["model"]["dtype"] == "bfloat16"
    assert outcome(moved) == outcome(whole)
    with pytest.raises(InputError, match=r"config\.model\.dtype was 'bfloat16', now 'float32'"):
        train(changed(config, model={"dtype": "float32"}), moved, Recorder())


def test_another_run_is_not_continued_and_all_that_changed_is_named(config, finished, again):
    other = changed(config, model={"hidden": 16}, optim={"learning_rate": 0.5})
    other = replace(changed(other, data={"batch_size": 16, "lowercase": True}), seed=7)
    with pytest.raises(InputError) as refused:
        train(other, again, Recorder())
    for named in (
        "config.seed was 0, now 7",
        "config.model.hidden was 8, now 16",
        "config.optim.learning_rate was 0.01, now 0.5",
        "config.data.batch_size was 8, now 16",
        "config.data.lowercase was False, now True",
    ):
        assert named in str(refused.value)
    assert str(again) in str(refused.value)
    assert "--workdir" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert outcome(again) == outcome(finished.folder)


def test_the_same_text_may_have_moved(config, finished, again, tmp_path):
    moved = tmp_path / "moved.txt"
    shutil.copy(config.data.path, moved)
    run(changed(config, data={"path": str(moved)}), again)
    assert outcome(again) == outcome(finished.folder)


def test_how_it_is_computed_may_change(config, again):
    other = changed(config, train={"max_steps": 45}, model={"remat": 4, "recurrence": "scan"})
    assert run(other, again).progress.ended == "step 45 of 45 is done"


def test_a_prompt_that_the_samples_cannot_have_is_refused_before_the_first_step(config, tmp_path):
    unknown = changed(config, sample={"prompt": "a cat"}, train={"max_steps": 10})
    shown = Recorder()
    with pytest.raises(InputError, match=r"^config\.sample\.prompt='É': .*U\+00C9.*another$"):
        train(changed(unknown, sample={"prompt": "É"}), tmp_path, shown)
    assert not shown.lines
    run(changed(unknown, sample={"prompt": "É", "num_chars": 0}), tmp_path / "without")


def test_how_long_and_how_often_may_change(config, again):
    # The new intervals allow for dispatches of 3 steps, which from step 40 on would miss them all.
    often = {"eval_every": 33, "log_every": 33, "checkpoint_every": 33}
    second = run(changed(config, train={"max_steps": 66, **often}), again)
    steps = [r["step"] for r in read_metrics(Workdir(again).metrics)]
    assert steps == [10, 20, 30, 40, 66]
    assert second.progress.ended == "step 66 of 66 is done"
    assert newest(again).step == 66
    assert any("one step at a time" in line for line in second.shown.lines)
    assert "optim.schedule=linear is now over 66 steps instead of 40" in second.shown.lines


def test_patience_ends_a_run_that_does_not_get_better(config, tmp_path):
    still = changed(
        config,
        optim={"learning_rate": 0.0, "schedule": "constant"},
        train={"max_steps": 1000, "eval_every": 10, "log_every": 10, "patience": 2},
    )
    ended = run(still, tmp_path)
    assert ended.progress.ended == "no better validation loss in 2 evaluations"
    assert [r["step"] for r in read_metrics(Workdir(tmp_path).metrics)] == [10, 20, 30]
    assert newest(tmp_path).step == 30
    second = run(still, tmp_path)
    assert second.progress.ended == ended.progress.ended
    assert newest(tmp_path).step == 30


def test_the_clock_ends_a_run_after_a_dispatch_with_an_evaluation_and_a_checkpoint(
    config, tmp_path
):
    short = changed(
        config,
        optim={"schedule": "constant", "warmup": 0.0},
        train={"max_steps": 0, "max_minutes": 1e-9},
    )
    ended = run(short, tmp_path)
    assert ended.progress.ended == "train.max_minutes=1e-09 have passed"
    last = read_metrics(Workdir(tmp_path).metrics)[-1]
    assert last["step"] > 0
    assert last["val_loss"] >= ended.progress.validation.best
    assert newest(tmp_path).step == last["step"]
    run(short, tmp_path)  # does not go on
    assert newest(tmp_path).step == last["step"]


def test_epochs_end_a_run(config, tmp_path):
    one = changed(config, train={"max_steps": 0, "max_epochs": 0.5, "eval_every": 0})
    run(one, tmp_path)
    (record,) = read_metrics(Workdir(tmp_path).metrics)[-1:]
    assert (record["step"], record["epoch"]) == (EPOCH // 2, 0.5)
    assert "val_loss" in record


# With weight decay the parameters grow by this factor at each step. Some step's loss overflows
# before they do, whatever a version of XLA makes of the largest floats.
WILD = {"learning_rate": 2e9, "weight_decay": 1.0, "schedule": "constant", "ema": 0.0}


@pytest.mark.parametrize("eval_every", [1, 1000])
def test_a_run_that_diverges_ends_and_what_it_saved_is_finite(eval_every, config, tmp_path):
    wild = changed(
        config,
        optim=WILD,
        train={
            "max_skipped": 2,
            "eval_every": eval_every,
            "sample_every": 1000,
            "checkpoint_every": 1,
            "log_every": 1,
        },
    )
    shown = Recorder()
    for _ in range(2):  # nor does a second attempt get any further
        with pytest.raises(DivergedError) as raised:
            train(wild, tmp_path, shown)
        assert str(tmp_path) in str(raised.value)
        assert "config.optim.learning_rate" in str(raised.value)
        assert "--workdir" in str(raised.value)  # this one is bound to its learning rate
    trained = load_trained(tmp_path, which="newest")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.params))
    if eval_every == 1000:
        assert any("skipped 1 non-finite update," in line for line in shown.lines)


def test_weights_that_are_not_finite_end_the_run_with_its_folder_and_the_remedy(
    config, tmp_path, monkeypatch
):
    what = "params/output_bias at step 20 is not finite and was not saved"
    monkeypatch.setattr(
        "charjax.train.loop.Checkpoints.save", Mock(side_effect=DivergedError(what))
    )
    with pytest.raises(DivergedError) as raised:
        run(config, tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path}: diverged: {what}; ")
    assert message.endswith("try a smaller config.optim.learning_rate than 0.01")


def test_skipped_updates_are_counted_in_the_records(config, tmp_path):
    wild = changed(
        config,
        optim=WILD,
        train={"max_skipped": 1000, "eval_every": 1000, "max_steps": 20},
        data={"split": (1.0, 0.0, 0.0)},
        sample={"num_chars": 0},
    )
    run(wild, tmp_path)
    last = read_metrics(Workdir(tmp_path).metrics)[-1]
    assert 10 < last["skipped"] < 20
    assert "train_loss" not in last


def test_without_a_validation_part_the_newest_is_the_best(config, tmp_path):
    no_val = changed(config, data={"split": (1.0, 0.0, 0.0)})
    ended = run(no_val, tmp_path)
    assert ended.progress.validation.best is None
    records = read_metrics(Workdir(tmp_path).metrics)
    assert not any("val_loss" in r for r in records)
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert load_trained(tmp_path, which="best").step == STEPS
    assert Workdir(tmp_path).samples.stat().st_size > 0


def test_samples_are_written_as_often_as_asked_for(config, tmp_path):
    run(changed(config, train={"sample_every": 10}), tmp_path)
    samples = Workdir(tmp_path).samples.read_text(encoding="utf-8")
    assert [f"step {n}," in samples for n in (10, 20, 30, 40)] == [True] * 4
    assert samples.count("=== step") == 4


@pytest.mark.parametrize(
    "data",
    [
        {"batching": "windows", "keep_partial": True},
        {"batching": "sliding", "stride": 3, "targets": "last"},
    ],
    ids=["windows", "sliding"],
)
def test_a_run_on_windows_trains(data, config, tmp_path):
    run(changed(config, data=data), tmp_path)
    losses = [r["train_loss"] for r in read_metrics(Workdir(tmp_path).metrics)]
    assert len(losses) == 4
    assert losses[-1] < losses[0]


def test_events_for_tensorboard_are_written_if_asked_for(config, finished, tmp_path):
    pytest.importorskip("tensorboardX")
    run(changed(config, train={"tensorboard": True}), tmp_path)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.read_bytes().count(b"train_loss") == 4
    assert events.read_bytes().count(b"sample, temperature 0.5") >= 2
    assert outcome(tmp_path) == outcome(finished.folder)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # by ml_collections
def test_a_killed_process_that_is_started_again_ends_as_if_it_had_not_been(
    config, finished, tmp_path, capfd
):
    """Killed in a process of its own, and resumed in this one."""
    file = write_config(tmp_path / "tiny.py", config)
    flags = [f"--config={file}", f"--workdir={tmp_path}/killed"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, str(root / "launch.py"), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=with_devices(1) | {"PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        next(line for line in process.stdout if line.startswith("step 20 "))
        process.kill()  # its samples and its checkpoint are under way
        assert process.stderr.read() == ""
    assert process.returncode == -signal.SIGKILL
    assert main(["train", *flags]) == 0
    assert "step 40 of 40 is done" in capfd.readouterr().out
    assert outcome(tmp_path / "killed") == outcome(finished.folder)
