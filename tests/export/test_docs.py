"""docs/export.md: its commands run, and show what the files have."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from charjax.cli.main import main
from charjax.config import ModelConfig
from charjax.export.api import FORMATS
from charjax.export.html import html_file
from charjax.model.network import parameter_count
from tests.export.tiny import CHARACTERS, sampled, trained_like

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text("utf-8")
BLOCKS = re.findall(r"(?:<!-- needs (\w+) -->\n)?```(sh|python)\n(.*?)```", PAGE, re.DOTALL)
EXAMPLES = {need or "nothing": code for need, kind, code in BLOCKS if kind == "python"}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The model of the page's run, without training one; and an empty folder to work in."""
    trained = trained_like(ModelConfig(cell="gru", hidden=12, embed=6), text=CHARACTERS)
    for command in ("export", "sample"):
        name = f"charjax.cli.commands.{command}.load_model"
        monkeypatch.setattr(name, lambda *_: trained)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return trained


def run(line: str, capfdbinary) -> bytes:
    """The standard output of one command of the page."""
    program, *arguments = shlex.split(line)
    if program == "charjax":
        assert main(arguments) == 0
        return capfdbinary.readouterr().out
    if program == "python":
        program = sys.executable
    done = subprocess.run([program, *arguments], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_the_commands_run_and_all_texts_of_a_model_are_the_same(trained, capfdbinary):
    texts: dict[str, set[bytes]] = {}
    for _, kind, commands in BLOCKS:
        for line in commands.splitlines() if kind == "sh" else ():
            if line.startswith(("cc", "./")) and not shutil.which("cc"):
                continue
            if output := run(line, capfdbinary):
                texts.setdefault(line.split()[0], set()).add(output)
    options = {"prompt": "ROMEO:", "num_chars": 300, "temperature": 0.8, "seed": 1}
    float32 = sampled(trained, **options)
    assert texts["charjax"] == texts["python"] == {float32}
    for text in texts.get("./model", ()):  # of int8 weights
        assert text.startswith(b"ROMEO:")
        assert len(text) == len(float32)


SLOW = [pytest.param(need, marks=pytest.mark.slow) for need in ("torch", "keras")]


@pytest.mark.parametrize("need", ["nothing", *SLOW])
def test_the_examples_run(need, trained, monkeypatch, capfdbinary):
    pytest.importorskip("onnxruntime" if need == "nothing" else need)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    format, out = (
        ("onnx", "shakespeare.onnx") if need == "nothing" else (need, f"shakespeare-{need}")
    )
    run(f"charjax export --workdir=runs/shakespeare --format={format} --out={out}", capfdbinary)
    Path("example.py").write_text(EXAMPLES[need], encoding="utf-8")
    output = run("python example.py", capfdbinary).decode()
    length = 100 if need == "nothing" else 1
    greedy = sampled(trained, prompt="ROMEO:", num_chars=length, temperature=0.0, seed=0)
    assert output.rstrip("\n").startswith(greedy.decode()[6:].rstrip("\n"))


def test_the_page_says_how_large_a_page_is():
    trained = trained_like(ModelConfig(cell="gru", hidden=512, embed=128), text=CHARACTERS)
    parameters, megabytes = re.search(
        r"([\d.]+) M parameters, is a page of ([\d.]+) MB", PAGE
    ).groups()
    assert f"{parameter_count(trained.params) / 1e6:.2f}" == parameters
    assert f"{len(html_file(trained)) / 1e6:.2f}" == megabytes


def test_every_format_has_a_section_of_the_page_and_is_in_the_help(capfd):
    assert set(FORMATS) <= set(re.findall(r"^## (\w+)$", PAGE, re.MULTILINE))
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert set(FORMATS) <= set(re.findall(r"\w+", capfd.readouterr().out.partition("--format")[2]))
