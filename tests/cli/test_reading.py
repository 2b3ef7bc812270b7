"""What the commands read as text."""

from __future__ import annotations

import json
import os
import pty
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from charjax.cli import main

# ml_collections loads config files by a function that Python deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIG = """
from charjax.config import (
    Config, DataConfig, ModelConfig, SampleConfig, TrainConfig, to_config_dict
)

def get_config():
    return to_config_dict(Config(
        data=DataConfig(corpus="python_docs", batch_size=8, seq_len=8),
        model=ModelConfig(cell="rnn", hidden=8, embed=4),
        train=TrainConfig(max_steps=10, eval_every=10, log_every=10),
        sample=SampleConfig(num_chars=0),
    ))
"""


class Outcome(NamedTuple):
    """A command's exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


Command = Callable[..., Outcome]


@pytest.fixture
def charjax(tmp_path, capfd, monkeypatch) -> Command:
    """Runs a command in a folder of its own, with `--config` where config fields are given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(CONFIG)

    def run(command: str, *flags: str) -> Outcome:
        fields = [f"--config.{flag}" for flag in flags if not flag.startswith("--")]
        options = [flag for flag in flags if flag.startswith("--")]
        config = ["--config=tiny.py"] if fields else []
        capfd.readouterr()
        code = main.main([command, *config, *fields, *options])
        return Outcome(code, *capfd.readouterr())

    return run


def names(count: int) -> list[str]:
    """Short words, always the same."""
    draw = random.Random(0)
    return ["".join(draw.choices("abcdefgh", k=draw.randint(2, 9))) for _ in range(count)]


def write_lines(path: str, lines: list[str], end: str = "\n") -> None:
    Path(path).write_bytes((end.join(lines) + end).encode())


def train(folder: Path, text: str, *fields: str) -> Path:
    """The folder of a tiny run on a text."""
    (folder / "tiny.py").write_text(CONFIG)
    (folder / "a.txt").write_bytes(text.encode())
    flags = [f"--config.{field}" for field in (f"data.path={folder}/a.txt", *fields)]
    assert main.main(["train", f"--config={folder}/tiny.py", f"--workdir={folder}/w", *flags]) == 0
    return folder / "w"


# Files and characters.


def test_files_that_are_the_same_text_are_said(charjax):
    write_lines("a.txt", names(300))
    write_lines("b.txt", names(300))
    assert "1 file has the text of another" in charjax("info", "data.path=.").err


ATTACK = "\x1b[2J\x1b]52;c;cm0=\x07"  # clear screen, and OSC 52, which sets the clipboard


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory) -> Path:
    """A run on lines with control characters, with line ends of Windows, in lower case."""
    text = "".join(f"{ATTACK}{name}\r\n" for name in names(300))
    fields = ("data.lowercase=True", "sample.prompt=ABBA", "sample.num_chars=3")
    return train(tmp_path_factory.mktemp("odd"), text, *fields)


def test_records_that_are_read_with_their_syntax_are_said(odd_run, charjax):
    Path("notes.jsonl").write_text('{"text": "a name"}\n' * 40)
    described = charjax("info", "data.path=notes.jsonl")
    scored = charjax("score", f"--workdir={odd_run}", "--file=notes.jsonl")
    for outcome in (described, scored):
        assert "NOTICE: notes.jsonl: read as it is" in outcome.err


def test_control_characters_are_counted(odd_run, charjax):
    described = charjax("info", f"data.path={odd_run.parent}/a.txt")
    assert "control characters: U+0007 (300x), U+001B (600x)" in described.err


def test_control_characters_are_shown_on_a_terminal_and_raw_elsewhere(
    odd_run, charjax, monkeypatch
):
    command = ("sample", f"--workdir={odd_run}", f"--prompt={ATTACK}", "--num_chars=200")
    raw = charjax(*command).out
    assert raw.startswith(ATTACK.lower())
    text = on_a_terminal("stdout", monkeypatch, *command)
    assert text.startswith(rb"\x1b[2j\x1b]52;c;cm0=\x07")
    assert b"\x1b" not in text
    assert b"\x07" not in text
    shutil.copytree(odd_run, "w\x1bc")  # reset
    verified = on_a_terminal("stderr", monkeypatch, "verify", "--workdir=w\x1bc")
    assert rb"w\x1bc/checkpoints/10: good" in verified


def on_a_terminal(stream: str, monkeypatch, *command: str) -> bytes:
    """What a terminal gets of one stream of a command."""
    terminal, theirs = pty.openpty()
    with open(terminal, "rb") as shown, open(theirs, "w") as file, monkeypatch.context() as patch:
        patch.setattr(f"sys.{stream}", file)
        assert main.main(command) == 0
        return os.read(shown.fileno(), 1 << 16)


# Documents.


@pytest.mark.parametrize("batching", ["stream", "windows"])
def test_every_character_of_short_documents_is_trained_on(charjax, batching):
    """Or what is not is said in numbers."""
    write_lines("names.txt", names(300))
    text = ("data.path=names.txt", "data.documents=lines", "data.split=(1.0,0.0,0.0)")
    fields = (*text, "data.seq_len=16", f"data.batching={batching}")
    facts = charjax("info", *fields).json
    assert facts["train_chars"] - 1 == facts["chars"] + 300  # with the ends
    assert facts["unused_chars"] == 0 or (batching == "stream" and facts["unused_chars"] < 8 * 16)
    started = charjax("train", *fields, "--workdir=w")
    assert ("are predicted in no batch of an epoch" in started.out) == (facts["unused_chars"] > 0)


WORDS = ("öne", "two", "six")


@pytest.fixture(scope="module")
def lines_run(tmp_path_factory) -> Path:
    """A run on lines that learns where they end."""
    return train(
        tmp_path_factory.mktemp("lines"),
        "".join(f"{word}\n" for word in WORDS * 200),
        *("data.documents=lines", "data.batching=sliding", "data.stride=2", "model.hidden=32"),
        *("train.max_steps=250", "train.eval_every=250", "optim.learning_rate=0.02"),
    )


def test_a_model_of_lines_begins_and_ends_lines(lines_run, charjax):
    """Texts begin where documents do, and end where the model ends them."""
    flags = ("--num_samples=20", "--num_chars=50", "--separator=|", "--temperature=0.5")
    sampled = charjax("sample", f"--workdir={lines_run}", *flags)
    assert set(sampled.out.strip().split("|")) == set(WORDS)


def test_duplicates_across_the_split_are_counted(lines_run, charjax):
    fields = ("data.documents=lines", "data.shuffle_documents=True")
    described = charjax("info", f"data.path={lines_run.parent}/a.txt", *fields)
    assert "of the validation split that are in the train split too: 60 of 60" in described.err


def test_documents_are_shuffled_before_the_split(charjax):
    write_lines("names.txt", sorted(names(300)))
    fields = ("data.path=names.txt", "data.documents=lines", "data.shuffle_documents=True")
    first, same = (charjax("info", *fields, "seed=1").json for _ in range(2))
    other = charjax("info", *fields, "seed=2").json
    assert first == same
    assert first["sha256"] == other["sha256"]  # the same text
    assert first["val_chars"] != other["val_chars"]


# Tables.


def test_cells_of_any_length_and_columns_by_name_are_read(charjax):
    cells = [("A", "x" * 170_000), ("B", "y" * 170_000)]
    for delimiter in (",", ";", "\t"):
        rows = [("title", "text"), *cells]
        write_lines("novels.csv", [delimiter.join(row) for row in rows])
        fields = ("data.path=novels.csv", "data.documents=rows")
        by_name = charjax("info", *fields, "data.columns=text")
        assert by_name.json["chars"] == 340_000
        assert f"separated by {delimiter!r}, 2 in a row" in by_name.err
        assert charjax("info", *fields, "data.columns=1").json["chars"] == 340_004
        assert charjax("info", *fields, "data.columns=1", "data.header=True").json["documents"] == 2
    unknown = charjax("info", *fields, "data.columns=body")
    assert (unknown.code, "title, text" in unknown.err) == (2, True)


def test_score_reads_a_file_as_the_runs_own_text_was_read(charjax):
    """A table with line ends of Windows, in lower case; a prompt in upper case."""
    rows = [f'"{name}, {name.upper()}",1' for name in names(300)]
    write_lines("tweets.csv", ["text,number", *rows], "\r\n")
    fields = (
        *("data.path=tweets.csv", "data.documents=rows", "data.columns=text"),
        *("data.lowercase=True", "data.newlines=unix", "data.batching=windows"),
        "data.split=(0.0001,0.9999,0.0)",  # nearly all of the file validates the run
    )
    assert charjax("train", *fields, "--workdir=w").code == 0
    scored = charjax("score", "--workdir=w", "--file=tweets.csv").json
    facts = charjax("info", *fields).json
    assert scored["chars"] == facts["chars"] + facts["documents"]
    best = charjax("info", "--workdir=w").json["val_loss"]
    assert scored["nats_per_char"] == pytest.approx(best, rel=0.01)
    prompted = charjax("sample", "--workdir=w", "--prompt=ABBA", "--num_chars=3")
    assert prompted.out.startswith("abba")
    assert charjax("sample", "--workdir=w", "--prompt=abc1").code == 2


# The same documents in other files, and the flags of `score` that read them.
LINES = WORDS * 9
SAME_LINES = (
    ("\n".join(LINES), ""),
    ("\n".join(LINES), "--encoding=latin-1"),
    ("\r".join(LINES), "--newlines=unix"),
    ("\n".join(LINES).upper(), "--lowercase"),
    ("\n1;".join(["n;word", *LINES]), "--columns=word --csv_delimiter=;"),
    ("\n1,".join(["n,word", *LINES]), "--columns=1 --header=true"),
    ("<>".join(LINES), "--delimiter=<>"),
    ("\n".join(["two thirds", *LINES, "the end"]), f"--start={WORDS[0]} --end=the"),
)


def test_score_takes_the_reading_options_for_a_file_that_differs(lines_run, charjax):
    """The same documents have the same score, however the file has them."""
    scores = []
    for text, flags in SAME_LINES:
        Path("file.txt").write_bytes(text.encode("latin-1" if "latin-1" in flags else "utf-8"))
        scored = charjax("score", f"--workdir={lines_run}", "--file=file.txt", *flags.split())
        assert scored.code == 0, scored.err
        scores.append(scored.json)
    assert scores[0]["chars"] == len(LINES) * (3 + 1)
    assert scores == [scores[0]] * len(scores)
    part = charjax("score", f"--workdir={lines_run}", "--part=val", "--encoding=latin-1")
    assert (part.code, "--encoding: needs --file" in part.err) == (2, True)


@pytest.mark.parametrize(
    ("flag", "mode"),
    [
        ("--documents=lines", "lines"),
        ("--documents=files", "files"),
        ("--delimiter=\n", "delimiter"),
        ("--documents=none", None),
        ("--newlines=unix", None),
    ],
)
def test_documents_that_a_model_reads_on_through_are_said(flag, mode, charjax, odd_run):
    scored = charjax("score", f"--workdir={odd_run}", f"--file={odd_run.parent}/a.txt", flag)
    assert scored.code == 0
    said = "this model has no document boundary, so that its carry goes on" in scored.err
    assert said == (f"--documents={mode}" in scored.err) == (mode is not None)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "set --encoding="),
        ("--encoding=nonsense", "--encoding='nonsense'"),
        ("--encoding=latin-1 --start=none", "--start='none': not in file.txt"),
        ("--documents=words", "--documents: invalid choice: 'words'"),
        ("--documents=delimiter", "set --delimiter to the text"),
        ("--documents=lines --header", "--header: has no effect here; needs --documents=rows"),
        ("--documents=lines --columns=1", "--columns: only CSV rows have columns; set --documents"),
        ("--csv_delimiter=ab", "--csv_delimiter='ab': must be one character"),
        ('--csv_delimiter="', "--csv_delimiter='\"': must be one character"),
        ("--encoding=latin-1 --columns=9", "--columns=9: line 1 of file.txt has 1 column,"),
        ("--encoding=latin-1 --delimiter=<>", "--delimiter='<>': not in file.txt"),
        ("--lowercase=maybe", "--lowercase: 'maybe' must be true or false"),
    ],
)
def test_what_score_cannot_read_is_one_line_with_its_own_flags(lines_run, charjax, flags, words):
    Path("file.txt").write_bytes("\n".join(LINES).encode("latin-1"))
    refused = charjax("score", f"--workdir={lines_run}", "--file=file.txt", *flags.split())
    assert (refused.code, refused.out) == (2, "")
    assert words in refused.err.splitlines()[-1]
    assert "config." not in refused.err


def test_a_prompt_of_the_config_is_prepared_as_the_text_was(odd_run, charjax):
    """In the samples of a run, too. A prompt in a file keeps its line ends, but no mark."""
    assert "\nabba" in (odd_run / "samples.txt").read_text()
    Path("prompt.txt").write_bytes(b"\xef\xbb\xbfabc\r\nDEF")
    flags = (f"--workdir={odd_run}", "--num_chars=1", "--temperature=0")
    prompted = charjax("sample", "--prompt_file=prompt.txt", *flags).out
    assert prompted.encode()[:8] == b"abc\r\ndef"
    assert charjax("sample", "--prompt=\ufeffabc\r\ndef", *flags).out == prompted


# What cannot act is said.


def test_a_validation_split_too_small_to_be_read_is_said(charjax):
    write_lines("a.txt", names(300))
    size = Path("a.txt").stat().st_size
    split = f"data.split=({1 - 1 / size},{1 / size},0.0)"
    described = charjax("info", "data.path=a.txt", split, "train.patience=2")
    assert "no validation loss, and train.patience=2 has no effect" in described.err
    small = charjax("info", "data.path=a.txt", "data.batch_size=500")
    assert f"the train split has {int(size * 0.9):,} characters" in small.err


@pytest.mark.parametrize("path", ["", "$UNSET", "texts/${UNSET}"])
def test_an_empty_path_that_was_given_is_refused(charjax, monkeypatch, path):
    monkeypatch.delenv("UNSET", raising=False)
    refused = charjax("train", f"data.path={path}", "--workdir=w")
    assert (refused.code, refused.out) == (2, "")
    assert f"config.data.path={path}" in refused.err
    assert not Path("w/metrics.jsonl").exists()


def test_memory_that_a_text_takes_is_no_fault_of_the_model(charjax, monkeypatch):
    def exhausted(*_, **__) -> None:
        raise MemoryError

    write_lines("a.txt", names(300))
    monkeypatch.setattr("charjax.data.dataset.load_corpus", exhausted)
    refused = charjax("info", "data.path=a.txt")
    assert refused.code == 4
    assert "a.txt: memory does not suffice to read this text" in refused.err
    assert "batch_size" not in refused.err
