"""A text without a config: sizes by the table, steps by the speed, all recorded once."""

from __future__ import annotations

import io
import json
import math
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax.cli.config_flags import override
from charjax.cli.main import main
from charjax.conditions import from_saved
from charjax.config import Config, DataConfig, TrainConfig, to_dict
from charjax.errors import InputError
from charjax.train import choice, sizing, warm_up
from charjax.train.choice import choose_config
from charjax.train.sizing import Row, Speed, find_row, is_list, load_rows, with_steps
from tests.test_config import LEAVES

PROSE = "It was a bright cold day in April, and the clocks were striking thirteen.\n" * 300
TINY = Row(
    *("cpu", 5000, 1, False),
    data={"batch_size": 8, "seq_len": 8},
    model={"cell": "gru", "hidden": 8, "embed": 4},
    optim={"learning_rate": 1e-2},
)


def unchanged(config: Config) -> Config:
    return config


def test_every_row_is_found_by_its_own_length_and_minutes():
    for device in ("cpu", "gpu"):
        assert find_row(10_000, 1.0, device).chars == 10_000
        assert find_row(30_000, 1.0, device).chars == 10_000
        assert find_row(40_000, 1.0, device).chars == 100_000
        assert find_row(10**9, 10.0, device).chars >= 10**7
    assert find_row(1, 1e6, "tpu").device == "gpu"


def test_every_row_makes_a_config_that_a_record_can_hold():
    for row in load_rows():
        config = sizing.sized_config("x", PROSE, row, 1)
        assert config.model.hidden == row.model["hidden"]
        assert from_saved(json.loads(json.dumps(to_dict(config)))) == config


def test_names_are_items_and_prose_and_verse_are_not():
    names = [f"{a}{b}{c}" for a in "abcdefgh" for b in "aeiou" for c in ("lla", "rt", "my")]
    assert is_list("\n".join(names))
    assert is_list("\r\n".join(f"{name} {name}son" for name in names))
    assert not is_list("\n".join(names[:50]))
    assert not is_list("yes\nno\n" * 500)
    assert not is_list(PROSE)
    assert not is_list("Two roads diverged in a yellow wood,\nAnd sorry I could not\n" * 200)


@given(
    st.floats(1e-4, 1), st.floats(0, 20), st.floats(1e-3, 5), st.floats(60, 36_000)
)  # fmt: skip
def test_the_steps_fill_the_time(step_s, compile_s, evaluation_s, left):
    """All but ten of the steps that fit are taken, and none that does not."""
    speed = Speed(step_s, compile_s, evaluation_s)
    config = with_steps(Config(train=TrainConfig(max_steps=1)), speed, left)
    steps, every = config.train.max_steps, config.train.eval_every
    evaluations = math.ceil(steps / every)
    assert 1 <= evaluations <= 10
    if steps == 10:  # as few as there may be
        return
    used = compile_s + steps * step_s + evaluations * evaluation_s
    assert used <= left
    assert used + 10 * step_s >= 0.95 * left - 10 * (evaluation_s + 1)


@pytest.fixture
def stdin(monkeypatch) -> SimpleNamespace:
    """Standard input, whose text is in `buffer`."""
    text = SimpleNamespace(buffer=io.BytesIO(PROSE.encode()), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", text)
    return text


@pytest.fixture
def tiny(monkeypatch, tmp_path) -> None:
    """Chooses a tiny model, and measures it for a moment."""
    monkeypatch.setattr(choice, "find_row", lambda *_: TINY)
    monkeypatch.setattr(warm_up, "_MIN_S", 0.01)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """A function that chooses for a text, and the list of what it measured."""
    text = tmp_path / "text.txt"
    text.write_text(PROSE)
    measured: list[Config] = []

    def measure(config: Config) -> Speed:
        measured.append(config)
        return Speed(0.01, 1.0, 0.1)

    def choose(minutes=None, override=unchanged, workdir=tmp_path / "run", source=str(text)):
        return choose_config(source, workdir, minutes, override, time.monotonic() - 5)

    monkeypatch.setattr(choice, "measure_speed", measure)
    return SimpleNamespace(choose=choose, measured=measured, workdir=tmp_path / "run")


def test_a_choice_is_recorded_and_never_made_again(chosen):
    first = chosen.choose(minutes=1.0)
    assert first.train.max_steps > 1000
    record = json.loads((chosen.workdir / "choice.json").read_text())
    assert (record["minutes"], len(record["chosen"])) == (1, 3)
    assert chosen.choose() == chosen.choose(minutes=1.0) == first
    assert len(chosen.measured) == 1
    with pytest.raises(InputError, match=r"--minutes=2: .* started with 1"):
        chosen.choose(minutes=2.0)


def test_a_demand_overrides_a_choice_before_and_after_the_warm_up(chosen):
    def override(config: Config) -> Config:
        return replace(config, model=replace(config.model, hidden=7))

    assert chosen.choose(override=override).model.hidden == 7
    assert chosen.measured[0].model.hidden == 7


@pytest.mark.parametrize("row", load_rows()[:3], ids=lambda row: f"{row.chars}")
@pytest.mark.parametrize("text", [PROSE, "".join(f"name{i}\n" for i in range(200))])
def test_any_demand_may_replace_what_was_chosen(row, text):
    config = sizing.sized_config("x", text, row, 1)
    demands = [(leaf.path, word) for leaf in LEAVES for word in leaf.limits.get("choices", ())]
    refused = {}
    for path, value in [*demands, ("config.model.embed", 0), ("config.data.split", "1,0,0")]:
        try:
            override(config, [f"--{path}={value}"], drops_unused=True)
        except InputError as error:
            refused[str(error)] = path
    # As the demand alone has no effect.
    assert [error for error, path in refused.items() if not error.startswith(path)] == []


@pytest.mark.parametrize("source", ["text.txt", PROSE.encode()])
def test_the_run_of_a_config_is_not_taken_over(chosen, source):
    """Nothing of it is written, and standard input is not kept there."""
    chosen.workdir.mkdir()
    (chosen.workdir / "run.json").write_text("{}")
    with pytest.raises(InputError, match="resume it with the same --config"):
        chosen.choose(source=source)
    written = {path.name for path in chosen.workdir.iterdir()}
    assert written == {".lock", "run.json"}


@pytest.mark.parametrize(
    "record", ['{"minutes": 1}', '{"minutes": 1, "config": [], "chosen": []}', "[" * 100_000]
)
def test_a_damaged_record_is_one_line(chosen, record):
    chosen.choose()
    (chosen.workdir / "choice.json").write_text(record)
    with pytest.raises(InputError, match=r"choice\.json: cannot be read"):
        chosen.choose()


def test_the_speed_of_a_fast_machine_is_not_shown_as_a_power_of_ten():
    config = Config(data=DataConfig(batch_size=32, seq_len=64), train=TrainConfig(max_steps=10))
    *_, steps = sizing.describe_choice(config, config, TINY, 1000, 4.0, Speed(0.001, 1.0, 1.0))
    assert "at the 2,048,000 characters a second of a warm-up" in steps


@pytest.mark.parametrize(
    ("minutes", "flags", "said"),
    [
        (2.0, [], "{0:,} steps, as many as fit into what is left of --minutes=2 at "),
        (0.1, [], "10 steps, the fewest there are, for what is left of --minutes=0.1 at "),
        (
            2.0,
            ["--config.train.max_steps=0", "--config.train.max_epochs=3"],
            "max_steps=0, as --con",
        ),
        (2.0, ["--config.train.max_steps=7"], "max_steps=7, as --config says, instead of "),
    ],
)
def test_the_number_of_steps_is_said_with_its_reason(minutes, flags, said, chosen):
    config = chosen.choose(minutes, lambda config: override(config, flags, drops_unused=True))
    *_, steps = json.loads((chosen.workdir / "choice.json").read_text())["chosen"]
    assert said.format(config.train.max_steps) in steps


@pytest.mark.parametrize(
    "flag", ["model.hidden=7", "model.layers=2", "optim.learning_rate=0.5", "data.seq_len=5"]
)
def test_what_a_flag_replaced_is_not_said_to_be_of_the_table(flag, chosen):
    for flags, ending in (([], "measured)"), ([flag], f"changed by --config to {flag}")):
        words, workdir = [f"--config.{flag}" for flag in flags], chosen.workdir / str(len(flags))
        chosen.choose(2.0, lambda c, w=words: override(c, w, drops_unused=True), workdir)
        _, table, _ = json.loads((workdir / "choice.json").read_text())["chosen"]
        assert table.endswith(ending)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("a.jsonl", None),  # which the reader says
        ("A.CSV", "--config.data.documents=rows reads"),
        ("a.txt", None),
    ],
)
def test_rows_that_are_read_as_one_text_are_said(path, hint):
    config = Config(data=DataConfig(path=path))
    chosen, *_ = sizing.describe_choice(config, config, TINY, 1000, 4.0, Speed(0.001, 1.0, 1.0))
    assert hint in chosen if hint else chosen.endswith("one text")


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("documents", ["lines", "files", "rows", "delimiter"])
def test_what_a_document_is_and_whether_they_are_shuffled_is_said(documents, shuffled):
    data = DataConfig(path="a.csv", documents=documents, shuffle_documents=shuffled)
    config = Config(data=data)
    chosen, *_ = sizing.describe_choice(config, config, TINY, 1000, 4.0, Speed(0.001, 1.0, 1.0))
    assert documents.removesuffix("s") in chosen
    assert chosen.endswith("is a document, shuffled before the split" if shuffled else "document")


def test_a_short_text_has_smaller_batches():
    row = TINY._replace(data={"batch_size": 32, "seq_len": 64})
    config = sizing.sized_config("x", "a b" * 100, row, 1)
    assert config.data.batch_size * (config.data.seq_len + 1) <= 270


def test_the_command_trains_a_text_resumes_it_and_keeps_standard_input(
    tmp_path, tiny, stdin, capsys
):
    flags = ["--config.train.max_steps=10", "--config.train.eval_every=10"]
    flags += ["--config.sample.num_chars=4", "--config.train.log_every=10"]
    stdin.buffer = io.BytesIO(b"")
    assert main(["train", "-", "--workdir=run", *flags]) == 2
    assert "standard input is empty" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    stdin.buffer = io.BytesIO(b"not UTF-8: \xe9")
    assert main(["train", "-", "--workdir=run", *flags]) == 2
    assert not (tmp_path / "run" / "input.txt").exists()
    stdin.buffer = io.BytesIO(PROSE.encode())
    assert main(["train", "-", "--workdir=run", *flags]) == 0
    out = capsys.readouterr().out
    assert out.count("chosen: ") == 3
    assert "step 10 of 10 is done" in out
    assert (tmp_path / "run" / "input.txt").read_bytes() == PROSE.encode()

    assert main(["train", "-", "--workdir=run", *flags[1:], "--config.train.max_steps=20"]) == 0
    out = capsys.readouterr().out
    assert "chosen: as recorded in" in out
    assert "resuming run at step 10" in out
    for _ in range(2):
        stdin.buffer = io.BytesIO(b"another text")
        assert main(["train", "-", "--workdir=run", *flags]) == 2
        assert "input.txt: is another text" in capsys.readouterr().err
        (tmp_path / "run" / "input.txt").unlink(missing_ok=True)  # as of a run that had a file


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("input.txt", "input.txt: is another text"),
        ("samples.txt", "has samples.txt but no checkpoint"),
    ],
)
def test_a_users_own_file_stops_the_run_before_the_warm_up(
    name, words, tmp_path, stdin, monkeypatch, capsys
):
    monkeypatch.setattr(choice, "measure_speed", lambda config: pytest.fail("warmed up"))
    (tmp_path / name).write_text("my own")
    assert main(["train", "-", f"--workdir={tmp_path}"]) == 2
    assert words in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "my own"
    assert {path.name for path in tmp_path.iterdir()} <= {name, ".lock"}


def test_a_text_without_a_validation_split_is_trained(tmp_path, tiny, capsys):
    (tmp_path / "text.txt").write_text(PROSE)
    flags = ["--config.data.split=(1.0, 0.0, 0.0)", "--config.train.max_steps=10"]
    assert main(["train", "text.txt", *flags, "--config.train.eval_every=10"]) == 0
    assert "step 10 of 10 is done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "give a TEXT, or --config"),
        (["train", "a.txt", "--config=shakespeare"], "a.txt: a TEXT stands in place of --config"),
        (["train", "--config=shakespeare", "--minutes=3"], "config.train.max_minutes"),
        (["train", "a.txt", "--minutes=0"], "--minutes=0: must be from 0.1"),
        (["train", "a.txt", "-"], "TEXT: neither -"),
        (["train", ""], "TEXT: is empty"),
        (["train", "a.txt", "--config.data.path=b.txt"], "--config.data.path: TEXT is what"),
        (["train", "a.txt", "--config.data.corpus=grimm"], "--config.data.corpus: TEXT is what"),
        (["train", "a.txt", ""], "TEXT: is empty"),
        (["train", "none.txt"], "none.txt"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
