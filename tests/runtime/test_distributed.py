"""Several processes on 127.0.0.1: the result of one, one writer, and a common end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from charjax.cli.main import main
from charjax.config import Config
from charjax.errors import InputError
from charjax.runtime import distributed
from charjax.train.loop import train
from charjax.train.metrics import read_metrics
from tests.environment import with_devices
from tests.faults.trial import write_config
from tests.train.tiny import Recorder, config_of, text_of

# Each test starts two processes that wait for each other: too slow for a busy machine.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
CONFIG = config_of(
    data={"seq_len": 16},
    model={"hidden": 16, "embed": 8, "dropout": 0.2},
    train={"max_steps": 12, "eval_every": 6, "checkpoint_every": 6, "log_every": 1},
    sample={"num_chars": 20},
)
ENDLESS = ("--config.train.max_steps=1000000", "--config.train.eval_every=100000")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "text.txt").write_text(text_of(2000))
    return write_config(folder / "tiny.py", on_text(folder))


def on_text(folder: Path, **train: int) -> Config:
    """The run of `tiny.py` as a config."""
    data = replace(CONFIG.data, path=str(folder / "text.txt"))
    return replace(CONFIG, data=data, train=replace(CONFIG.train, **train))


Start: TypeAlias = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def start(config, tmp_path) -> Iterator[Start]:
    """Starts a run of two processes of two devices each; none of them outlives the test."""
    running: list[subprocess.Popen[str]] = []

    def started(*flags: str, second: Sequence[str] = ()) -> list[subprocess.Popen[str]]:
        command = [sys.executable, str(ROOT / "launch.py"), f"--config={config}", *flags]
        command += [f"--workdir={tmp_path / 'run'}", "--num_processes=2"]
        command += [f"--coordinator=127.0.0.1:{free_port()}"]
        for process_flags in (["--process_id=0"], ["--process_id=1", *second]):
            running.append(
                subprocess.Popen(
                    [*command, *process_flags],
                    env=with_devices(2),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return running

    yield started
    for process in running:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def ends(running: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """(exit code, standard output, standard error) of each."""
    said = [process.communicate(timeout=150) for process in running]
    return [(p.returncode, *both) for p, both in zip(running, said, strict=True)]


def wait_for(path: Path) -> None:
    until = time.monotonic() + 90
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.05)


def test_two_processes_are_one_run(start, config, tmp_path):
    (code, said, complaint), (other_code, other_said, other_complaint) = ends(start())
    assert (code, other_code) == (0, 0), complaint + other_complaint
    assert "step 12" in said
    assert (complaint, other_said, other_complaint) == ("", "", "")

    train(on_text(config.parent), tmp_path / "one", Recorder())
    two, one = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("run", "one"))
    assert [r["step"] for r in two] == [r["step"] for r in one] == list(range(1, 13))
    for key, rtol in (("train_loss", 1e-6), ("val_loss", 1e-6)):
        np.testing.assert_allclose(
            [r[key] for r in two if key in r], [r[key] for r in one if key in r], rtol=rtol
        )
    samples = (tmp_path / name / "samples.txt" for name in ("run", "one"))
    assert len({path.read_bytes() for path in samples}) == 1

    # One process goes on from what two have saved.
    shown = Recorder()
    train(on_text(config.parent, max_steps=18), tmp_path / "run", shown)
    assert any("at step 12" in line for line in shown.lines)


def test_when_process_0_dies_the_other_ends_with_one_line(start, tmp_path):
    running = start(*ENDLESS)
    wait_for(tmp_path / "run" / "checkpoints" / "6")
    running[0].send_signal(signal.SIGKILL)
    _, (code, said, complaint) = ends(running)
    assert (code, said) == (4, "")
    assert re.fullmatch(r"charjax: process 1 of 2: another process .* has ended .*\n", complaint)
    assert (tmp_path / "run" / "process-1.log").read_text()


def test_a_signal_to_one_process_stops_both_at_the_same_saved_step(start, tmp_path):
    running = start(*ENDLESS)
    wait_for(tmp_path / "run" / "checkpoints" / "6")
    running[1].send_signal(signal.SIGTERM)
    ended = ends(running)
    assert [code for code, _, _ in ended] == [143, 143]
    steps = {re.search(r"stopped at step (\d+)", complaint)[1] for _, _, complaint in ended}
    assert len(steps) == 1
    assert (tmp_path / "run" / "checkpoints" / steps.pop()).is_dir()


def test_a_process_that_is_done_waits_for_the_others(tmp_path):
    """Longer than JAX waits for them: process 0 draws the curves of a run."""
    body = """if 1:
        import sys, time
        from pathlib import Path
        from charjax.runtime import distributed
        distributed._SHUTDOWN_TIMEOUT_S = 1
        spec = distributed.ProcessSpec(sys.argv[1], int(sys.argv[2]), 2)
        with distributed.join_processes(spec, native_log=Path(sys.argv[3], "{}.log")):
            time.sleep(0 if spec.process_id else 4)
    """
    command = [sys.executable, "-c", body, f"127.0.0.1:{free_port()}"]
    running = [
        subprocess.Popen([*command, str(number), str(tmp_path)], env=with_devices(1))
        for number in (0, 1)
    ]
    assert [process.wait(timeout=60) for process in running] == [0, 0]


def test_processes_with_different_configs_do_not_train(start):
    (first, _, _), (second, _, complaint) = ends(start(second=["--config.seed=7"]))
    assert first in (2, 4)
    assert second == 2
    assert "differs from that of process 0" in complaint


def test_when_process_1_dies_process_0_ends_within_a_minute(start, tmp_path):
    running = start(*ENDLESS)
    wait_for(tmp_path / "run" / "checkpoints" / "6")
    running[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    (code, _, complaint), _ = ends(running)
    assert time.monotonic() - began < 60
    assert code == 4
    assert re.fullmatch(r"charjax: process 0 of 2: another process .* has ended .*\n", complaint)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--coordinator=here:1"], "together, or none"),
        (["--num_processes=2", "--process_id=0"], "together, or none"),
        (["--coordinator=here", "--num_processes=2", "--process_id=0"], "must be HOST:PORT"),
        (["--coordinator=here:1", "--num_processes=2", "--process_id=2"], "from 0 to 1"),
        (["--coordinator=here:1", "--num_processes=2", "--process_id=-1"], "from 0 to 1"),
        (["--coordinator=here:1", "--num_processes=1", "--process_id=1"], "from 0 to 0"),
    ],
)
def test_invalid_process_flags_are_refused(flags, complaint, config, tmp_path, capsys):
    assert main(["train", f"--config={config}", f"--workdir={tmp_path}", *flags]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_one_process_agrees_with_itself():
    assert distributed.all_max([3, 0]) == [3, 0]
    distributed.require_same("anything", "value")
    with distributed.primary_first():
        pass
    assert distributed.is_primary()
    assert not distributed.is_multiprocess()


def test_exchange_returns_the_maximum_of_the_call_before():
    exchange = distributed.Exchange(2)
    assert exchange([15, 0]) == [0, 0]
    assert exchange([0, 1]) == [15, 0]
    assert exchange([0, 0]) == [0, 1]


def test_a_single_process_joins_nothing_and_writes_no_log(tmp_path):
    with distributed.join_processes(None, native_log=tmp_path / "{}.log"):
        assert not list(tmp_path.iterdir())
    with (
        pytest.raises(InputError),
        distributed.join_processes(distributed.ProcessSpec("", 0, 1), native_log=tmp_path),
    ):
        raise InputError("is passed on")
