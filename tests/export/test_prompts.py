"""Every export that reads a prompt reads it as `charjax sample` does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from charjax.config import ModelConfig
from charjax.export.api import FORMATS, export_model
from charjax.inference.load import TrainedModel
from charjax.inference.texts.prompt import encode_prompt
from tests.export.runners import (
    compile_c,
    needs_cc,
    needs_node,
    run_page,
    run_script,
)
from tests.export.tiny import dequantize_model, lowercased, sampled, trained_like

# A byte order mark, line ends of all systems, capitals; é is composed in the models' text.
PROMPT = "\ufeffTHE\r\nC\rat e\u0301"
SETTINGS = {"num_chars": 30, "temperature": 0.8, "seed": 3}
# What reads tokens; what charjax itself reads.
OTHERS = {"program", "onnx", "torch", "keras"} | {"hub"}


def in_numpy(out: Path, trained: TrainedModel, prompt: str) -> bytes:
    return run_script(out, prompt=prompt, **SETTINGS).stdout


def in_page(out: Path, trained: TrainedModel, prompt: str) -> bytes:
    (text,) = run_page(out, options=[{"prompt": prompt, **SETTINGS}])["texts"]
    read = encode_prompt(trained, prompt, "error").text(trained.vocab)
    return (read + text.removeprefix(prompt)).encode()  # a page shows it as it was typed


def in_c(out: Path, trained: TrainedModel, prompt: str) -> bytes:
    compile_c(out, out.with_suffix(".exe"), "-xc", "-DCHARJAX_MAIN")
    command = [out.with_suffix(".exe"), prompt, *map(str, SETTINGS.values())]
    return subprocess.run(command, capture_output=True, check=False).stdout


WRITERS = {"numpy": in_numpy, "html": in_page, "c": in_c}
MARKS = {"html": needs_node, "c": needs_cc}


def test_every_format_that_reads_a_prompt_is_tested():
    assert WRITERS.keys() | OTHERS == FORMATS.keys()


@pytest.mark.parametrize(
    ("unit", "capital"), [("codepoint", "É"), ("byte", "A")], ids=["characters", "bytes"]
)
@pytest.mark.parametrize(
    "format", [pytest.param(name, marks=MARKS.get(name, ())) for name in WRITERS]
)
def test_a_prompt_is_read_as_the_command_reads_it(format, unit, capital, tmp_path):
    trained = lowercased(trained_like(ModelConfig(cell="gru", hidden=12, embed=6), unit=unit))
    export_model(trained, tmp_path / "out", format=format)
    same = dequantize_model(trained) if format in ("html", "c") else trained
    prompt = PROMPT + capital
    if format == "c":  # which has no tables of Unicode's forms, and refuses other ones
        assert WRITERS[format](tmp_path / "out", trained, prompt) == b""
        prompt = prompt.replace("e\u0301", "é")
    want = sampled(same, prompt=prompt, **SETTINGS)
    text = WRITERS[format](tmp_path / "out", trained, prompt)
    assert text.decode("utf-8", "replace").encode() == want
