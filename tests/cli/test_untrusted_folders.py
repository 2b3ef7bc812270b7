"""Commands on folders that another user, another run or an accident may have changed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from charjax.cli.main import main
from charjax.config import Config, DataConfig, ModelConfig, SampleConfig, TrainConfig
from charjax.model.recurrence.c import build
from charjax.workdir import Workdir
from tests.checkpoint.rewriting import rewrite_record
from tests.environment import contents
from tests.faults.trial import write_config

# ml_collections loads config files by a function that Python deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A config file, whose text is beside it."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "text.txt").write_text("the cat sat on a mat and saw some tea\n" * 60)
    tiny = Config(
        data=DataConfig(path=str(folder / "text.txt"), batch_size=8, seq_len=8),
        model=ModelConfig(cell="rnn", hidden=8, embed=4),
        train=TrainConfig(max_steps=20, eval_every=10, log_every=10),
        sample=SampleConfig(num_chars=4),
    )
    return write_config(folder / "tiny.py", tiny)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, config) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(run.parent))
        assert main(["train", f"--config={config}", f"--workdir={run}"]) == 0
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A trained run to change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def call(capsys) -> Callable[..., tuple[int, str]]:
    """Runs a command: its exit code, and its last line on standard error."""

    def call(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(arguments)
        errors = capsys.readouterr().err
        assert "Traceback" not in errors
        return code, (errors.splitlines() or [""])[-1]

    return call


@pytest.fixture
def train(call, config) -> Callable[[Path], tuple[int, str]]:
    return lambda workdir: call("train", f"--config={config}", f"--workdir={workdir}")


def test_a_users_own_file_is_not_emptied(tmp_path, train):
    (tmp_path / "samples.txt").write_text("my own samples")
    code, error = train(tmp_path)
    assert code == 2
    assert f"{tmp_path}: has samples.txt but no checkpoint" in error
    assert contents(tmp_path)["samples.txt"] == b"my own samples"
    assert sorted(os.listdir(tmp_path)) == [".lock", "samples.txt"]


def test_a_run_without_its_checkpoints_is_not_started_anew(run, train):
    (run / "checkpoints").rename(run.parent / "moved")
    before = contents(run)
    code, error = train(run)
    assert code == 2
    assert "has run.json, metrics.jsonl, samples.txt, curves.png but no checkpoint" in error
    assert contents(run) == before
    (run.parent / "moved").rename(run / "checkpoints")
    assert train(run)[0] == 0


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(tmp_path, train):
    folder = Workdir(tmp_path)
    folder.start()
    folder.write_run({})
    folder.metrics.write_text('{"step": 10}\n')
    assert train(tmp_path)[0] == 0
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [
        10,
        20,
    ]


def test_the_lock_is_on_the_folder(run, train):
    with Workdir(run).lock():
        (run / ".lock").unlink()
        code, error = train(run)
    assert (code, "in use by another process" in error) == (4, True)


LINKS = ("metrics.jsonl", "samples.txt", "run.json", "curves.png", ".lock", "checkpoints")


@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_written_through_a_link(run, train, name):
    path, target = run / name, run.parent / "target"
    path.rename(target)
    path.symlink_to(target)
    before = contents(target.parent)
    code, error = train(run)
    assert code == 2
    assert f"{path}: a link, which no run writes; remove it" in error
    assert contents(target.parent) == before


PLANTED = """
#include <stdio.h>
__attribute__((constructor)) static void run(void) { fclose(fopen("%s", "w")); }
"""


def charjax_process(run: Path, **environment: str) -> list[str]:
    """The arguments of a process that needs the compiled kernels, in `sh`."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    command = [sys.executable, "-m", "charjax", "sample", f"--workdir={run}", "--num_chars=4"]
    return ["env", *variables, *command]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_planted_or_truncated_kernel_is_not_loaded_but_compiled_again(run, tmp_path):
    cache = tmp_path / "cache" / "charjax" / "kernels"
    cache.mkdir(parents=True, mode=0o700)
    (tmp_path / "planted.c").write_text(PLANTED % (tmp_path / "loaded"))
    library = tmp_path / "planted.so"
    subprocess.run(["cc", "-shared", "-fPIC", tmp_path / "planted.c", "-o", library], check=True)
    planted = library.rename(cache / build._name(build._cache_key(), library.read_bytes()))
    planted.chmod(0o666)
    truncated = cache / build._name(build._cache_key(), b"all of it")
    truncated.write_bytes(planted.read_bytes()[:5000])
    truncated.chmod(0o600)
    quick = tmp_path / "quick"  # what it compiles is slow, and not looked at
    quick.write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    quick.chmod(0o755)
    command = charjax_process(run, XDG_CACHE_HOME=str(tmp_path / "cache"), CC=str(quick))
    subprocess.run(command, check=True, capture_output=True)
    (compiled,) = cache.iterdir()
    assert compiled not in (planted, truncated)
    assert not (tmp_path / "loaded").exists()


def processes_with(word: str) -> list[str]:
    """The command lines of running processes that have this word."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if word in line]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc")
def test_a_command_that_is_killed_while_it_compiles_leaves_nothing_running(run, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nsleep 300 &\nwait\n")
    compiler.chmod(0o755)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    variables = {"XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(temporary), "CC": str(compiler)}
    command = charjax_process(run, **variables)
    with subprocess.Popen(command) as process:
        try:
            wait_for(lambda: len(processes_with(str(compiler))) > 1)
        finally:
            process.kill()
    wait_for(lambda: not processes_with(str(compiler)) and not list(temporary.iterdir()))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_record_of_the_metrics_without_numbers_is_one_line(run, call, config):
    metrics = run / "metrics.jsonl"
    first, *others = metrics.read_text().splitlines()
    for value in (None, "low", math.nan, 10**400):
        wrong = json.dumps(json.loads(first) | {"train_loss": value})
        metrics.write_text("\n".join([wrong, *others]) + "\n")
        code, error = call("train", f"--config={config}", f"--workdir={run}")
        assert (code, error) == (0, "")


@pytest.mark.parametrize("linked", [False, True])
def test_an_export_overwrites_no_file_of_the_user(run, call, tmp_path, monkeypatch, linked):
    """Also not through a link."""
    mine = tmp_path / ("mine" if linked else "README.md")
    mine.write_text("mine")
    if linked:
        (tmp_path / "README.md").symlink_to(mine)
    monkeypatch.chdir(tmp_path)
    code, error = call("export", f"--workdir={run}", "--out=.")
    assert (code, mine.read_text()) == (2, "mine")
    assert "README.md: exists and was not written by charjax export" in error
    assert call("export", f"--workdir={run}", "--out=new", "--format=numpy")[0] == 0
    assert call("export", f"--workdir={run}", "--out=new", "--format=numpy")[0] == 0


def test_without_a_home_nothing_is_written_to_the_current_folder(run, call, tmp_path, monkeypatch):

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert call("info", f"--workdir={run}")[0] == 0
    folder = tmp_path / "tmp" / f"charjax-{os.getuid()}"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder / "jax")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(os.listdir(tmp_path)) == ["run", "tmp"]


SHAPES: dict[str, Callable[[dict], object]] = {
    "meta is empty": lambda r: r.update(meta={}),
    "no progress": lambda r: r["meta"].pop("progress"),
    "progress is null": lambda r: r["meta"].update(progress=None),
    "progress without a field": lambda r: r["meta"]["progress"].pop("since_best"),
    "progress with a new field": lambda r: r["meta"]["progress"].update(more=1),
    "time is text": lambda r: r["meta"]["progress"].update(elapsed_s="long"),
    "losses are null": lambda r: r["meta"]["progress"].update(losses=None),
    "a loss is text": lambda r: r["meta"]["progress"].update(losses=["1"]),
    "no config": lambda r: r["meta"].pop("config"),
    "config is a list": lambda r: r["meta"].update(config=[]),
    "config has an unknown field": lambda r: r["meta"]["config"].update(more=1),
    "model is null": lambda r: r["meta"]["config"].update(model=None),
    "hidden is text": lambda r: r["meta"]["config"]["model"].update(hidden="8"),
    "hidden is another number": lambda r: r["meta"]["config"]["model"].update(hidden=2**30),
    "no vocabulary": lambda r: r["meta"].pop("vocabulary"),
    "vocabulary is empty": lambda r: r["meta"]["vocabulary"].update(symbols=""),
    "vocabulary is a number": lambda r: r["meta"].update(vocabulary=7),
    "vocabulary repeats": lambda r: r["meta"]["vocabulary"].update(symbols="aa"),
    "vocabulary is another": lambda r: r["meta"]["vocabulary"].update(symbols="ab"),
    "corpus is text": lambda r: r["meta"].update(corpus="tea"),
    "corpus has no name": lambda r: r["meta"]["corpus"].pop("name"),
    "versions is a list": lambda r: r["meta"].update(versions=[1]),
    "device is a number": lambda r: r["meta"].update(device=1),
    "logs is null": lambda r: r["meta"].update(logs=None),
    "a log is below 0": lambda r: r["meta"]["logs"].update({"metrics.jsonl": -1}),
    "a log is missing": lambda r: r["meta"]["logs"].pop("samples.txt"),
    "recurrence is text": lambda r: r["meta"].update(recurrence="c"),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_record_of_another_shape_is_one_line_and_exit_3(run, call, config, shape):
    for step in run.glob("checkpoints/*"):
        rewrite_record(SHAPES[shape], step)
    code, error = call("info", f"--workdir={run}")
    assert code == 3, error
    assert error.startswith("charjax: ")
    if "another" not in shape:  # what the user's own config has is taken in place of it
        code, error = call("train", f"--config={config}", f"--workdir={run}")
        assert code == 3, error


def test_a_run_of_an_implementation_that_this_version_lacks_goes_on_with_another(run, call, config):
    recorded = {"implementation": "later", "reason": "the fastest here"}
    for step in run.glob("checkpoints/*"):
        rewrite_record(lambda r: r["meta"].update(recurrence=recorded), step)
    for command in ("info", "sample", "verify"):
        assert call(command, f"--workdir={run}")[0] == 0
    (run / "run.json").write_text("damaged")
    command = ("train", f"--config={config}", f"--workdir={run}")
    assert call(*command)[0] == 0  # it has ended, and is as it was saved
    assert json.loads((run / "run.json").read_text())["recurrence"] == recorded
    assert call(*command, "--config.train.max_steps=30")[0] == 0
    written = json.loads((run / "run.json").read_text())["recurrence"]
    assert written["implementation"] != "later"
    assert "later refuses: this version has no such implementation" in written["reason"]


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run", "hdfs:/run"])
@pytest.mark.parametrize("command", ["train", "info", "sample", "verify", "export"])
def test_a_remote_folder_is_refused_before_any_work(
    tmp_path, call, config, monkeypatch, command, address
):
    monkeypatch.chdir(tmp_path)
    flags = [f"--config={config}"] if command == "train" else []
    flag = "--out" if command == "export" else "--workdir"
    code, error = call(command, f"{flag}={address}", *flags)
    assert code == 2
    assert f"{flag}=" in error
    assert "not a path of this machine" in error
    assert os.listdir(tmp_path) == []
