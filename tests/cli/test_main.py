from __future__ import annotations

import contextlib
import copy
import errno
import importlib.metadata
import io
import json
import math
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import IO, NamedTuple

import pytest

from charjax.cli import commands, main
from charjax.cli.arguments import Parser
from charjax.inference.scoring import evaluate
from charjax.inference.scoring.dynamic import update_rule
from charjax.inference.scoring.evaluate import Score
from charjax.runtime.cache import private_cache_folder
from charjax.train.metrics import read_metrics
from tests.environment import with_devices

ROOT = Path(__file__).parents[2]
TEXT = "the cat sat on a mat and saw some tea\n" * 60
CONFIG = """
from charjax.config import (
    Config, DataConfig, ModelConfig, SampleConfig, TrainConfig, to_config_dict
)

def get_config(max_steps=20):
    return to_config_dict(Config(
        data=DataConfig(path={path!r}, batch_size=8, seq_len=8),
        model=ModelConfig(cell="rnn", hidden=8, embed=4),
        train=TrainConfig(max_steps=int(max_steps), eval_every=10, log_every=10),
        sample=SampleConfig(num_chars=0),
    ))
"""
FILES = {
    "empty.txt": b"",
    "short.txt": b"The cat sat.",
    "latin.txt": b"caf\xe9 " * 100,
    "windows.txt": b"the cat\r\n" * 9,
    "syntax.py": b"def get_config(:\n",
    "bare.py": b"x = 1\n",
}


class Workspace(NamedTuple):
    """A folder with text and config files and a trained run, and an environment without network."""

    folder: Path
    environment: dict[str, str]

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def fill(self, arguments: str | Sequence[str]) -> list[str]:
        words = arguments.split() if isinstance(arguments, str) else arguments
        return [word.replace("@", f"{self.folder}/") for word in words]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    folder = tmp_path_factory.mktemp("workspace")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "tiny.py").write_text(CONFIG.format(path=str(folder / "text.txt")), encoding="utf-8")
    (folder / "nothing").mkdir()
    kept = {name: value for name, value in with_devices(1).items() if name != "no_proxy"}
    nowhere = "http://127.0.0.1:9"
    environment = kept | {
        "XDG_CACHE_HOME": str(folder / "cache"),
        "CHARJAX_DATA_DIR": str(folder / "nothing"),
        "PYTHONPATH": str(ROOT),
        "http_proxy": nowhere,
        "https_proxy": nowhere,
    }
    workspace = Workspace(folder, environment)
    if compiled := private_cache_folder("kernels"):  # instead of compiling them again
        (folder / "cache" / "charjax").mkdir(parents=True)
        (folder / "cache" / "charjax" / "kernels").symlink_to(compiled)
    assert main.main(workspace.fill("train --config=@tiny.py --workdir=@run")) == 0
    return workspace


@pytest.fixture(autouse=True)
def _surroundings(workspace, monkeypatch) -> None:
    for name in ("XDG_CACHE_HOME", "CHARJAX_DATA_DIR"):
        monkeypatch.setenv(name, workspace.environment[name])
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, workspace.environment[name])
    monkeypatch.delenv("no_proxy", raising=False)


COMMANDS = commands.load_commands()
PROGRAMS = {"launch": [str(ROOT / "launch.py")], "charjax": ["-m", "charjax"]}


def start(
    workspace: Workspace,
    program: str,
    arguments: str | Sequence[str],
    stdout: int | IO[bytes] = PIPE,
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, *PROGRAMS[program], *workspace.fill(arguments)]
    return subprocess.run(
        command, stdout=stdout, stderr=PIPE, env=workspace.environment, timeout=100, check=False
    )


TRAIN = "train --config=@tiny.py --workdir=@new"
SAMPLE = "sample --workdir=@run"
SCORE = "score --workdir=@run"
# By exit code: the arguments, and words that the one line on stderr must have.
FAULTS: dict[int, dict[str, tuple[str, ...]]] = {
    2: {
        "": ("COMMAND", "--help"),
        "trian": ("trian", "train", "--help"),
        "train --config=@tiny.py --workdr=x": ("--workdr=x", "did you mean --workdir?"),
        "train --confg=@tiny.py": ("--confg=", "did you mean --config?"),
        f"{SAMPLE} --temp=1": ("--temp=1", "--temperature"),
        f"{SAMPLE} hello": ("hello: belongs to no flag", "--help"),
        f"{SAMPLE} --config.sample.num_chars=3": (
            *("--config.sample.num_chars=3", "sample takes no config", "--help"),
        ),
        f"{SAMPLE} --prompt=a --prompt_file=@text.txt": ("--prompt_file", "--prompt"),
        f"{SAMPLE} --prompt_file=@none.txt": ("none.txt",),
        f"{SAMPLE} --prompt_file=@latin.txt": ("latin.txt", "UTF-8"),
        f"{SAMPLE} --prompts=@empty.txt": ("--prompts=", "empty.txt: is empty"),
        f"{SAMPLE} --prompt=日": ("U+65E5", "日", "config.data.unk"),
        f"{SAMPLE} --num_chars=-1": ("--num_chars=-1", "from 0"),
        f"{SAMPLE} --num_chars={10**12}": (f"--num_chars={10**12}",),
        f"{SAMPLE} --num_chars=many": ("--num_chars", "'many'", "int"),
        f"{SAMPLE} --num_samples=0": ("--num_samples=0", "from 1"),
        f"{SAMPLE} --temperature=nan": ("--temperature=nan", "0 (greedy) or a positive number"),
        f"{SAMPLE} --top_p=0": ("--top_p=0.0", "above 0 and at most 1"),
        f"{SAMPLE} --pick=2 --seed=1": ("--seed", "--pick"),
        f"{SAMPLE} --pick=2 --prompts=@text.txt": ("--prompts", "--pick"),
        f"{SAMPLE} --json --separator=x": ("--separator", "--json"),
        f"{SAMPLE} --repetition_window=9": ("--repetition_window", "--repetition_penalty"),
        f"{SAMPLE} --checkpoint=oldest": ("'oldest'", "best, newest or the number"),
        "sample --checkpoint=newest": ("--checkpoint=newest", "--workdir"),
        "score --file=@text.txt": ("--workdir", "--help"),
        SCORE: ("--file", "--help"),
        f"{SCORE} --part=test": ("--part=test", "split"),
        f"{SCORE} --part=val --file=x": ("--part", "--file"),
        f"{SCORE} --part=val --unknown=unk": ("--unknown", "--file"),
        f"{SCORE} --part=val --window=-1": ("--window=-1",),
        f"{SCORE} --part=val --window=8 --dynamic": ("--dynamic", "--window"),
        f"{SCORE} --part=val --decay=0.1": ("--decay", "--dynamic"),
        f"{SCORE} --part=val --dynamic --segment=0": ("--segment=0", "from 1 to"),
        f"{SCORE} --part=val --dynamic --weights=int8": ("--dynamic", "--weights"),
        f"{SCORE} --file=@run": ("--file=", "no text file"),
        f"{SCORE} --file=@empty.txt": ("--file=", "empty.txt: has no character to predict"),
        f"{SCORE} --file=@tiny.py": ("--file=", "tiny.py: not in the vocabulary: U+"),
        f"{SCORE} --file=@windows.txt": ("windows.txt: ", "U+000D", "give --newlines=unix"),
        f"{SCORE} --file=@none.txt": ("--file=", "none.txt"),
        f"{SCORE} --file=@latin.txt": ("latin.txt", "0xE9", "offset 3", "--encoding="),
        f"{SCORE} --file=@text.txt --csv_delimiter=xx": ("--csv_delimiter='xx': must be one",),
        "pack @text.txt --out=@store --columns=a": ("--columns: only CSV", "--documents=rows"),
        "info": ("--config=FILE", "--workdir=DIR"),
        "info --config=@tiny.py --workdir=@run": ("--config=FILE", "--workdir=DIR"),
        "info --workdir=": ("--workdir=", "is empty"),
        "serve --workdir @run @nothing/run": ("two folders are named run",),
        "verify @run": ("a run's folder", "--workdir="),
        "train": ("--config", "--config=shakespeare"),
        "train --config": ("--config", "--config=VALUE"),
        "train --config=@syntax.py": ("syntax.py", "line 1"),
        "train --config=@bare.py": ("bare.py", "get_config"),
        "train --config=@tiny.py --workdir=@text.txt": (
            *("text.txt", "not a folder", "choose another"),
        ),
        "train --config=@tiny.py --workdir=@run --config.model.hidden=9": (
            *("config.model.hidden was 8, now 9", "--workdir"),
        ),
        f"{TRAIN} --config=@bare.py": ("--config", "one config"),
        f"{TRAIN} --config.seed": ("--config.seed", "--config.seed=VALUE"),
        f"{TRAIN} --config.sed=1": ("--config.sed=1", "seed"),
        f"{TRAIN} --config.modle.hidden=3": ("--config.modle.hidden=3", "model"),
        f"{TRAIN} --config.model.dropout=1.5": ("config.model.dropout=1.5", "from 0 to 0.99"),
        f"{TRAIN} --config.model.cell=gruu": ("config.model.cell='gruu'", "gru, lstm, rnn"),
        f"{TRAIN} --config.data.stride=3": ("config.data.stride=3", "data.batching=sliding"),
        f"{TRAIN} --config.data.path=@none.txt": ("config.data.path", "none.txt"),
        f"{TRAIN} --config.data.path=@empty.txt": ("empty.txt", "empty"),
        f"{TRAIN} --config.data.path=@short.txt": ("characters", "seq_len=8", "batch_size=8"),
        f"{TRAIN} --config.data.path=@latin.txt": (
            *("latin.txt", "0xE9", "offset 3", "data.encoding="),
        ),
        f"{TRAIN} --config.data.path= --config.data.corpus=shakespear": (
            *("config.data.corpus='shakespear'", "shakespeare", "config.data.path"),
        ),
    },
    3: {
        f"{SAMPLE} --checkpoint=7": ("checkpoints/7", "10, 20"),
        "sample --workdir=@nothing": ("nothing/checkpoints", "train"),
        "sample --workdir=@none": ("none/checkpoints", "train"),
        "verify --workdir=@nothing": ("nothing/checkpoints",),
    },
    4: {  # there is no network
        "train --config=shakespeare --config.data.offline= --workdir=@new": (
            *("'shakespeare'", "https://", "config.data.path", "config.data.offline"),
        ),
    },
}


def assert_one_line(stderr: str, words: Sequence[str]) -> None:
    assert stderr.endswith("\n")
    (line,) = stderr.splitlines()
    assert line.startswith("charjax: ")
    for word in words:
        assert word in line


def flags_of(command: str) -> list[str]:
    """The flags of a command."""
    parser = Parser()
    if command in COMMANDS:
        COMMANDS[command].add_arguments(parser)
    return re.findall(r"--\w+", parser.format_help())


@pytest.mark.parametrize(
    ("code", "arguments"), [(code, line) for code, faults in FAULTS.items() for line in faults]
)
def test_a_fault_is_one_line_that_names_it_and_the_remedy(code, arguments, workspace, capfd):
    filled = workspace.fill(arguments)
    assert main.main(filled) == code
    line = capfd.readouterr().err
    assert_one_line(line, FAULTS[code][arguments])
    given = re.findall(r"--\w+", arguments)
    command = arguments.partition(" ")[0]
    assert {*re.findall(r"--\w+", line)} <= {"--help", *given, *flags_of(command)}


def test_an_invalid_config_leaves_no_folder(workspace, tmp_path):
    arguments = workspace.fill("train --config=@tiny.py --config.model.hidden=0")
    assert main.main([*arguments, f"--workdir={tmp_path}/new"]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["none.txt", "--config=@tiny.py --config.data.path=none.txt"])
def test_a_missing_text_leaves_no_folder(text, workspace, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main.main(workspace.fill(f"train {text} --workdir=runs/none")) == 2
    assert_one_line(capfd.readouterr().err, ("'none.txt'", f"current folder {tmp_path}"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def text(workspace) -> Iterator[Path]:
    """The file of the run's text, which a test may change."""
    file = workspace.folder / "text.txt"
    yield file
    file.write_text(TEXT, encoding="utf-8")


@pytest.fixture
def output(workspace, capfd) -> Callable[..., str]:
    """Runs a command that succeeds without a message, and returns what it writes."""

    def run(arguments: str) -> str:
        capfd.readouterr()
        assert main.main(workspace.fill(arguments)) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return str(out)

    return run


def test_a_seed_determines_the_text(output):
    command = SAMPLE + " --prompt=the --num_chars=200 --seed="
    first = output(command + "3")
    assert len(first) == 203
    assert first.startswith("the")
    assert set(first) <= set(TEXT)
    assert first == output(command + "3")
    assert first != output(command + "4")


def test_a_process_writes_the_same_bytes_and_nothing_else(workspace, output):
    command = SAMPLE + " --prompt=the --num_chars=50 --seed=3 --temperature=0"
    ended = start(workspace, "charjax", command)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.decode() == output(command)


def test_a_prompt_may_come_from_a_file_or_standard_input(workspace, monkeypatch, output):
    """A prompt with line ends."""
    prompt, rest = "the cat\nsat", "--num_chars=9 --seed=3"
    (workspace.folder / "prompt.txt").write_text(prompt, encoding="utf-8")
    text = output(f"{SAMPLE} --prompt_file=@prompt.txt {rest}")
    assert text.startswith(prompt)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(prompt.encode())))
    assert output(f"{SAMPLE} --prompt_file=- {rest}") == text
    without = f"{SAMPLE} --no_prompt --prompt_file=@prompt.txt {rest}"
    assert output(without) == text.removeprefix(prompt)


def test_prompts_in_a_file_of_windows_have_no_carriage_returns(workspace, output):
    (workspace.folder / "prompts.txt").write_bytes(b"the cat\r\nsat\r\n")
    text = output(f"{SAMPLE} --prompts=@prompts.txt --num_chars=0")
    assert text == "the cat\n=====\nsat"


@pytest.mark.parametrize("form", ["", " --json"])
def test_no_text_is_written_before_a_later_prompt_is_refused(form, workspace, capfd):
    (workspace.folder / "prompts.txt").write_text("the\nÆ\n", encoding="utf-8")
    command = f"{SAMPLE} --prompts=@prompts.txt --num_chars=2{form}"
    assert main.main(workspace.fill(command)) == 2
    stdout, stderr = capfd.readouterr()
    assert not stdout
    assert "prompts.txt: line 2: not in the vocabulary: U+00C6" in stderr


def test_choices_that_are_not_utf_8_are_refused(workspace, capfd, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    assert main.main(workspace.fill(f"{SAMPLE} --pick=2")) == 2
    assert "standard input: not valid UTF-8" in capfd.readouterr().err.splitlines()[-1]


def test_text_that_the_model_cannot_read_does_not_end_picking(workspace, capfd, monkeypatch):
    typed = "cat\n日\ns\n\n".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
    assert main.main(workspace.fill(f"{SAMPLE} --pick=2 --prompt=a")) == 0
    stdout, stderr = capfd.readouterr()
    assert stdout == "acats"
    assert "not in the vocabulary: U+65E5" in stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_does_not_lose_the_text_that_was_picked(number, workspace):
    words = [*workspace.fill(SAMPLE), "--pick=1", "--prompt=the "]
    with subprocess.Popen(
        [sys.executable, *PROGRAMS["charjax"], *words],
        env=workspace.environment, stdin=PIPE, stdout=PIPE, stderr=PIPE,
    ) as process:  # fmt: skip
        process.stdin.write(b"cat\n sat\n")
        process.stdin.flush()
        asked = b""
        while asked.count(b"nothing to end: ") < 3:
            asked += os.read(process.stderr.fileno(), 1 << 16)
        process.send_signal(number)
        assert process.stdout.read() == b"the cat sat"
        assert process.stderr.read().startswith(b"\ncharjax: ")
    assert process.returncode == 128 + number


@pytest.mark.parametrize("flag", ["--prompt", "--stop", "--separator", "--forbid", "--only"])
def test_a_backslash_in_a_text_is_pointed_out(flag, workspace, capfd):
    """A shell passes a backslash and an n as two characters."""
    words = workspace.fill([*SAMPLE.split(), f"{flag}=a\\nb", "--num_chars=2"])
    assert main.main(words) == (0 if flag == "--separator" else 2)
    line = capfd.readouterr().err.splitlines()[0]
    assert line.startswith(f"{flag}: a backslash is not an escape here; write $'\\n' in the shell")
    assert ("--prompt_file" in line) == (flag == "--prompt")


def test_flags_and_their_values_may_be_two_words(output):
    one = output(SAMPLE + " --num_chars=20 --seed=1")
    assert output("sample --workdir @run --num_chars 20 --seed 1") == one
    info = output("info --config @tiny.py --config.model.hidden 16")
    assert json.loads(info)["hidden"] == 16


def test_the_score_of_the_validation_text_is_the_validation_loss(workspace, monkeypatch, output):
    records = read_metrics(workspace.run / "metrics.jsonl")
    best = min(r["val_loss"] for r in records if "val_loss" in r)
    validation = TEXT[int(len(TEXT) * 0.9) :]
    (workspace.folder / "val.txt").write_text(validation, encoding="utf-8")
    score = json.loads(output("score --workdir=@run --file=@val.txt"))
    assert set(score) == {
        *("chars", "nats_per_char", "bits_per_char", "bits_per_byte", "perplexity")
    }
    assert score["chars"] == len(validation) - 1
    assert score["nats_per_char"] == pytest.approx(best, rel=1e-4)
    assert score["bits_per_char"] == pytest.approx(score["nats_per_char"] / math.log(2))
    assert score["perplexity"] == pytest.approx(math.exp(score["nats_per_char"]))

    stdin = io.TextIOWrapper(io.BytesIO(validation.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert json.loads(output("score --workdir=@run --file=-")) == score


def test_an_infinite_perplexity_is_null_in_json(workspace, capfd, monkeypatch):
    monkeypatch.setattr("charjax.inference.scoring.score.score_text", lambda *_: Score(1, 1000.0))
    assert main.main(workspace.fill("score --workdir=@run --file=@text.txt")) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["perplexity"] is None
    assert "Infinity" not in out
    assert [line for line in err.splitlines() if "perplexity" in line]


def test_info_describes_a_config_and_a_run_alike(output):
    config = json.loads(output("info --config=@tiny.py"))
    trained = json.loads(output("info --workdir=@run"))
    for name in ("parameters", "vocab_size", "cell", "layers", "hidden", "corpus", "sha256"):
        assert config[name] == trained[name]
    assert (config["cell"], config["layers"], config["hidden"]) == ("rnn", 1, 8)
    assert config["vocab_size"] == len(set(TEXT))
    assert config["train_chars"] + config["val_chars"] + config["test_chars"] == len(TEXT)
    assert trained["step"] in (10, 20)


def test_a_config_takes_its_argument_after_a_colon_and_names_the_folder(workspace, monkeypatch):
    runs = {}
    monkeypatch.setattr(
        "charjax.train.loop.train",
        lambda config, workdir, display, **_: runs.update({str(workdir): config.train.max_steps}),
    )
    for arguments in ("@tiny.py", "@tiny.py:10", "@tiny.py:10 --workdir=there"):
        assert main.main(workspace.fill(f"train --config={arguments}")) == 0
    assert runs == {"runs/tiny": 20, "runs/tiny-10": 10, "there": 10}


def test_verify_reads_every_checkpoint(workspace, capfd):
    assert main.main(workspace.fill("verify --workdir=@run")) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"10": "good", "20": "good"}
    *steps, text = err.splitlines()
    assert len(steps) == 2
    assert text.endswith("text.txt: good")


def test_verify_names_every_damage_where_no_checkpoint_is_good(workspace, tmp_path, capfd):
    shutil.copytree(workspace.folder / "run", tmp_path / "run")
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        shutil.rmtree(step / "state")
    assert main.main(["verify", f"--workdir={tmp_path / 'run'}"]) == 3
    out, err = capfd.readouterr()
    verdicts = json.loads(out)
    assert list(verdicts) == ["10", "20"]
    assert "good" not in verdicts.values()
    assert "holds no checkpoint that verifies" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (TEXT[:-2] + "!\n", 3, "is not the text that this run was trained on (SHA-256 "),
        (None, 0, "the text is not compared: config.data.path="),
    ],
)
def test_verify_reads_the_text_of_a_run_again(workspace, text, content, code, said, capfd):
    text.unlink()
    if content:
        text.write_text(content, encoding="utf-8")
    assert main.main(workspace.fill("verify --workdir=@run")) == code
    out, err = capfd.readouterr()
    assert json.loads(out) == {"10": "good", "20": "good"}
    assert said in err.splitlines()[-1]


def test_the_version_is_that_of_the_package(capfd):
    with pytest.raises(SystemExit) as ended:
        main.main(["--version"])
    assert ended.value.code == 0
    assert capfd.readouterr().out == f"charjax {importlib.metadata.version('charjax')}\n"


def test_a_command_is_one_file(tmp_path, monkeypatch, capfd):
    (tmp_path / "greet.py").write_text(
        '"""Greet somebody."""\n'
        "def add_arguments(parser): parser.add_argument('--name', required=True)\n"
        "def run(args): print(f'hello {args.name}')\n"
    )
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert main.main(["greet", "--name=you"]) == 0
    assert capfd.readouterr().out == "hello you\n"
    assert main.main(["greet", "--name=you", "--nam=x"]) == 2
    assert "did you mean --name?" in capfd.readouterr().err
    assert main.main(["greet", "--name=you", "--config.seed=1"]) == 2
    assert "greet takes no config" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main.main(["--help"])
    assert "Greet somebody." in capfd.readouterr().out


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_interrupt_while_modules_load_prints_no_traceback(program, workspace, tmp_path):
    (tmp_path / "argparse.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    )
    environment = workspace.environment | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, *PROGRAMS[program]]
    ended = subprocess.run(command, env=environment, stderr=PIPE, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, b"")


def path_flags() -> Iterator[tuple[str, str]]:
    """(command, flag) of the flags whose values are paths, as the first words of their help say."""
    for name, command in COMMANDS.items():
        parser = Parser()
        command.add_arguments(parser)
        for action in parser._actions:
            (about, *_), takes_value = re.split("[;(]", action.help or ""), action.nargs != 0
            if takes_value and re.search(r"\b(files?|folders?)\b", about):
                yield from ((name, flag) for flag in action.option_strings)


PATH_FLAGS = [*path_flags()]
# With every path flag of each command.
SERVE = ("serve --workdir=@run --port=0", "serve --key_file=@prompt.txt --port=0")
WITH_PATHS = (  # of the commands that end by themselves
    "train --config=@tiny.py --workdir=@run",
    "info --config=@tiny.py",
    "info --workdir=@run",
    "sample --workdir=@run --prompt_file=@prompt.txt --num_chars=3",
    "sample --workdir=@run --prompts=@prompt.txt --num_chars=3",
    "score --workdir=@run --file=@prompt.txt",
    "look --workdir=@run --file=@prompt.txt --out=@new/page.html",
    "train --config=@tiny.py --workdir=@tuned --init_from=@run",
    "export --workdir=@run --out=@torch --format=torch",
    "convert @torch/model.safetensors --from=torch --vocabulary=@torch/vocabulary.json --out=@new",
    "verify --workdir=@run",
    "pack @prompt.txt --out=@new/store",
)


def test_every_path_flag_of_each_command_is_tried():
    lines = (*WITH_PATHS, *SERVE)
    tried = {(line.split()[0], flag) for line in lines for flag in re.findall(r"(--\w+)=@", line)}
    assert tried == {*PATH_FLAGS}


@pytest.mark.parametrize("line", WITH_PATHS)
def test_home_and_variables_mean_the_same_in_every_flag(line, workspace, monkeypatch, capfd):
    (workspace.folder / "prompt.txt").write_text("the cat", encoding="utf-8")
    monkeypatch.setenv("HOME", str(workspace.folder))
    monkeypatch.setenv("FOLDER", str(workspace.folder))
    monkeypatch.chdir(workspace.folder / "nothing")
    shutil.rmtree(workspace.folder / "new", ignore_errors=True)
    written = line.replace("@", "~/", 1).replace("@", "${FOLDER}/")
    assert main.main(written.split()) == 0, capfd.readouterr().err
    assert os.listdir() == []


@pytest.mark.parametrize(("command", "flag"), PATH_FLAGS)
def test_a_path_of_nobody_and_an_unset_variable_are_refused(
    command, flag, workspace, monkeypatch, capfd
):
    monkeypatch.delenv("UNSET", raising=False)
    run = ["--workdir=@run"] if flag == "--file" else []
    run += ["--out=@page.html"] if (command, flag) == ("look", "--file") else []
    for value, words in (("~nobody-of-this-name/x", "no such user"), ("$UNSET/x", "UNSET")):
        assert main.main([command, *workspace.fill(run), f"{flag}={value}"]) == 2
        assert_one_line(capfd.readouterr().err, (f"charjax: {flag}={value}: ", words))


def lines_without_a_path() -> Iterator[tuple[str, str]]:
    """(what is missing, the line) for each path that is read in `WITH_PATHS` and `SERVE`."""
    for line in (*WITH_PATHS, *SERVE):
        for word in line.split():
            is_written = word.startswith(("--out", "--workdir" if "train" in line else "--out"))
            if "@" in word and not is_written:
                for missing in ("@nothing/none", "@nothing"):  # no such file; a folder
                    yield missing, line.replace(word, re.sub("@.*", missing, word))


@pytest.mark.parametrize(("missing", "line"), [*lines_without_a_path()])
def test_a_path_with_nothing_to_read_is_one_line(missing, line, workspace, capfd):
    (workspace.folder / "prompt.txt").write_text("the cat", encoding="utf-8")
    if "@torch" in line and not (workspace.folder / "torch").exists():
        assert main.main(workspace.fill("export --workdir=@run --out=@torch --format=torch")) == 0
        capfd.readouterr()
    for written in ("new", "tuned"):
        shutil.rmtree(workspace.folder / written, ignore_errors=True)
    assert main.main(workspace.fill(line)) == (3 if re.search(f"--workdir={missing}", line) else 2)
    assert_one_line(capfd.readouterr().err, workspace.fill(missing))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text(command, capfd):
    with pytest.raises(SystemExit) as ended:
        main.main([command, "--help"])
    assert ended.value.code == 0
    said = capfd.readouterr().out.split()
    assert " ".join(COMMANDS[command].__doc__.split()) in " ".join(said)


def test_the_same_command_again_says_that_the_run_is_finished(workspace, output):
    before = (workspace.run / "metrics.jsonl").read_bytes()
    out = output("train --config=@tiny.py --workdir=@run")
    assert "step 20 of 20 is done" in out
    assert (workspace.run / "metrics.jsonl").read_bytes() == before


def test_a_closed_output_pipe_is_no_error(workspace):
    command = [
        sys.executable,
        *PROGRAMS["charjax"],
        *workspace.fill(SAMPLE + " --num_chars=300000"),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=workspace.environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def start_training(
    workspace: Workspace, workdir: Path, max_steps: int, until: str
) -> subprocess.Popen[str]:
    """A run that has written a line that begins so."""
    config = f"--config=@tiny.py:{max_steps}"
    process = subprocess.Popen(
        [sys.executable, *PROGRAMS["launch"], *workspace.fill(config), f"--workdir={workdir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=workspace.environment,
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith(until):
        assert process.poll() is None
    return process


def assert_saved(stderr: str, workdir: Path) -> None:
    assert_one_line(stderr, (str(workdir), "stopped", "the same command"))
    step = int(re.search(r"at step (\d+)", stderr)[1])
    assert (workdir / "checkpoints" / str(step)).is_dir()


def test_a_stopped_run_is_saved_and_ends_with_one_line_and_an_exit_code(workspace, tmp_path):
    with start_training(workspace, tmp_path, 1_000_000, until="step ") as process:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 143
    assert_saved(err, tmp_path)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGHUP, 129), (signal.SIGUSR1, 138), (signal.SIGXCPU, 152)]
)
def test_every_signal_that_stops_a_run_saves_it(
    number, code, workspace, tmp_path, capfd, monkeypatch
):
    """In this process, which signals itself after the first evaluation."""

    def validate_and_signal(*args: object) -> Score | None:
        result = evaluate.validate(*args)
        os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr("charjax.train.loop.validate", validate_and_signal)
    arguments = workspace.fill("train --config=@tiny.py:1000")
    assert main.main([*arguments, f"--workdir={tmp_path}"]) == code
    assert_saved(capfd.readouterr().err, tmp_path)


def test_a_run_goes_on_when_its_output_is_read_no_more(workspace, tmp_path):
    """`charjax train ... | head -4`."""
    with start_training(workspace, tmp_path, 20, until="") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 0
    assert_one_line(err, ("standard output", "goes on"))
    assert (tmp_path / "checkpoints" / "20").is_dir()


def test_a_run_whose_terminal_is_closed_is_saved(workspace, tmp_path):
    terminal, theirs = pty.openpty()
    arguments = [*workspace.fill("--config=@tiny.py:1000000"), f"--workdir={tmp_path}"]
    # It becomes the command, with the terminal that is its standard input as its own.
    become = [sys.executable, "-m", "tests.faults.endings"]
    with subprocess.Popen(
        [*become, sys.executable, *PROGRAMS["launch"], *arguments],
        env=workspace.environment,
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        seen = b""
        for columns in (20, 1, 200, 100):  # a resize does not matter
            termios.tcsetwinsize(terminal, (24, columns))
            seen = b""
            while seen.count(b"\n") < 20:
                assert process.poll() is None
                seen += os.read(terminal, 1 << 16)
        assert b"val loss" in seen
        os.close(terminal)
    assert process.returncode == 129
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]["step"]
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) >= last


def test_on_a_terminal_the_message_of_an_interrupt_is_not_glued_to_the_text(workspace):
    terminal, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, *PROGRAMS["charjax"], *workspace.fill(SAMPLE), "--num_chars=10000000"],
        env=workspace.environment,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        seen = os.read(terminal, 1 << 16)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # on Linux, where it has ended
            while part := os.read(terminal, 1 << 16):
                seen += part
    os.close(terminal)
    assert process.returncode == 130
    assert seen.endswith(b"\r\ncharjax: interrupted\r\n")


def test_a_run_trains_without_a_standard_output(workspace, tmp_path, capfd, monkeypatch, output):
    """`charjax train ... >&-`: Python then has no `sys.stdout`."""
    monkeypatch.setattr("sys.stdout", None)
    arguments = workspace.fill("train --config=@tiny.py")
    assert main.main([*arguments, f"--workdir={tmp_path}"]) == 0
    sys.stdout.close()
    assert_one_line(capfd.readouterr().err, ("standard output", "goes on"))
    assert (tmp_path / "checkpoints" / "20").is_dir()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), ("out of memory", "config.data.batch_size")),
        (
            RuntimeError("RESOURCE_EXHAUSTED: 9 GiB\nmore"),
            ("out of memory", "9 GiB", "smaller config.data.batch_size"),
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), ("/x", "No space left")),
        (OSError(errno.ENOENT, "No such file or directory"), ("the current folder", "removed")),
    ],
)
def test_a_lack_of_memory_or_disk_is_no_traceback(error, words, capfd, monkeypatch):
    def fail(args: object) -> None:
        raise error

    monkeypatch.setattr("charjax.cli.commands.info.run", fail)
    assert main.main(["info"]) == 4
    assert_one_line(capfd.readouterr().err, words)


def test_a_missing_platform_is_no_traceback(workspace):
    elsewhere = workspace._replace(environment=workspace.environment | {"JAX_PLATFORMS": "tpu"})
    ended = start(elsewhere, "charjax", SAMPLE + " --num_chars=1")
    assert ended.returncode == 4
    assert_one_line(ended.stderr.decode(), ("JAX_PLATFORMS=tpu", "JAX_PLATFORMS=cpu"))


def test_what_a_kill_left_of_a_compiled_program_is_made_again(workspace, tmp_path):
    """JAX itself would warn of it in every later process."""
    named = {k: v for k, v in workspace.environment.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    elsewhere = workspace._replace(environment=named | {"XDG_CACHE_HOME": str(tmp_path)})
    (tmp_path / "charjax").mkdir()
    (tmp_path / "charjax" / "kernels").symlink_to(private_cache_folder("kernels") or tmp_path)
    command = "score --workdir=@run --file=@text.txt"
    first = start(elsewhere, "charjax", command)
    entries = [*tmp_path.glob("charjax/jax/*-cache")]
    assert entries
    for entry in entries:
        os.truncate(entry, 10)
    again = start(elsewhere, "charjax", command)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert again.stderr.decode().count("a damaged program is compiled again") == 1
    assert b"Warning" not in again.stderr
    assert all(entry.stat().st_size > 10 for entry in entries)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full disk to hand")
def test_a_full_disk_behind_standard_output_is_no_traceback(workspace):
    with open("/dev/full", "wb") as full:
        ended = start(workspace, "charjax", "info --workdir=@run", stdout=full)
    assert ended.returncode == 4
    assert_one_line(ended.stderr.decode(), ("No space left",))


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_a_help_that_cannot_be_written_is_one_line(command, capfd, monkeypatch):
    """As with `charjax --help >/dev/full` where PYTHONUNBUFFERED is set."""

    def fail(text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys.stdout, "write", fail)
    assert main.main([*command.split(), "--help"]) == 4
    assert_one_line(capfd.readouterr().err, ("No space left",))


@pytest.mark.parametrize("arguments", ["--help", "verify --workdir=@run"])
def test_a_closed_standard_output_is_one_line(arguments, workspace):
    """`charjax ... >&-`."""
    command = [sys.executable, "-m", "charjax", *workspace.fill(arguments)]
    shell = ["sh", "-c", '"$@" >&-', "sh", *command]
    done = subprocess.run(shell, stderr=PIPE, env=workspace.environment, timeout=100, check=False)
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith(b"charjax: a closed standard stream: ")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    ["train - --workdir=@closed", f"{SAMPLE} --prompt_file=-", "score --file=- --workdir=@run"],
)
def test_a_closed_standard_input_is_one_line(arguments, workspace, capfd, monkeypatch):
    """`charjax ... <&-`: Python then has no `sys.stdin`."""
    monkeypatch.setattr("sys.stdin", None)
    assert main.main(workspace.fill(arguments)) in (2, 4)
    sys.stdin.close()
    assert "Bad file descriptor" in capfd.readouterr().err.splitlines()[-1]


def test_the_parts_of_the_runs_own_text_are_scored(output):
    score = json.loads(output("score --workdir=@run --part=val"))
    info = json.loads(output("info --workdir=@run"))
    assert score["nats_per_char"] == pytest.approx(info["val_loss"], abs=1e-6)


@pytest.mark.parametrize("command", ["score --part=val", "sample --new --num_chars=5"])
def test_a_relative_path_of_the_runs_text_is_said_to_be_one(
    command, workspace, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(workspace.folder)
    run = tmp_path / "run"
    config = f"--config=tiny.py --config.data.path=text.txt --workdir={run}"
    assert main.main(f"train {config} --config.train.max_steps=1".split()) == 0
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    assert main.main([*command.split(), f"--workdir={run}"]) == 2
    assert_one_line(capfd.readouterr().err, ("'text.txt'", f"current folder {tmp_path}"))


def test_a_score_says_how_the_text_was_read(output):
    score = "score --workdir=@run --part=val"
    stream = json.loads(output(score))
    window = json.loads(output(f"{score} --window=8"))
    assert (window.pop("window"), window["chars"]) == (8, stream["chars"])
    assert window["nats_per_char"] != stream["nats_per_char"]
    assert window.keys() == stream.keys()
    dynamic = json.loads(output(f"{score} --dynamic --learning_rate=0.001"))
    assert dynamic.pop("dynamic") == {
        "learning_rate": 0.001, "decay": 2e-3, "epsilon": 2e-5, "segment": 20
    }  # fmt: skip
    assert dynamic.keys() == stream.keys()
    lines = output(f"{score} --dynamic --learning_rate=0.001 --per_char")
    nats = [json.loads(line)["nats"] for line in lines.splitlines()]
    assert sum(nats) / len(nats) == pytest.approx(dynamic["nats_per_char"], abs=1e-6)


@pytest.mark.parametrize(
    "command", ["score --part=val --dynamic", "sample --new --max_copy=9 --num_chars=0"]
)
def test_the_text_of_a_run_is_read_once(command, workspace, tmp_path, capfd):
    (tmp_path / "text.txt").write_text(f"\ufeff{TEXT}", encoding="utf-8")
    path, run = f"--config.data.path={tmp_path}/text.txt", f"--workdir={tmp_path}/run"
    assert main.main([*workspace.fill("train --config=@tiny.py:1"), path, run]) == 0
    capfd.readouterr()
    assert main.main([*command.split(), run]) == 0
    assert_one_line(f"charjax: {capfd.readouterr().err}", ["dropped the byte order mark"])


def test_dynamic_evaluation_that_diverges_ends_with_code_5(workspace, capfd, monkeypatch):
    def diverging(params, rms, options):  # the flag's largest value, 1, keeps losses finite
        options = copy.copy(options)
        object.__setattr__(options, "learning_rate", 1e38)
        return update_rule(params, rms, options)

    monkeypatch.setattr("charjax.inference.scoring.score.update_rule", diverging)
    command = "score --workdir=@run --part=val --dynamic --learning_rate=0.5"
    assert main.main(workspace.fill(command)) == 5
    assert_one_line(capfd.readouterr().err, ("--learning_rate=0.5", "smaller"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--part=val", ("--part=val", "SHA-256", "--file")),
        ("--file=@text.txt --dynamic", ("--dynamic", "SHA-256", "without --dynamic")),
    ],
)
def test_a_part_of_another_text_is_not_scored(workspace, text, capfd, flags, words):
    text.write_text(TEXT[::-1], encoding="utf-8")
    assert main.main(workspace.fill(f"score --workdir=@run {flags}")) == 2
    assert_one_line(capfd.readouterr().err, words)


def test_a_defect_is_not_hidden(monkeypatch):
    def fail(args: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("charjax.cli.commands.info.run", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        main.main(["info"])


def test_an_interrupted_command_ends_with_its_code(monkeypatch, capfd):
    def fail(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("charjax.cli.commands.info.run", fail)
    assert main.main(["info"]) == 130
    assert_one_line(capfd.readouterr().err, ("interrupted",))
