"""Exports where they are meant to run: a page in Chromium, a C file on a microcontroller.

Needs `pip install playwright`, and chromium, arm-none-eabi-gcc with newlib and qemu-system-arm of
the system; what is missing is skipped.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from pathlib import Path

import jax
import pytest

from charjax.config import ModelConfig
from charjax.export.api import export_model
from charjax.inference.load import TrainedModel
from tests.export.runners import STRICT
from tests.export.tiny import CHARACTERS, dequantize_model, sampled, trained_like

pytestmark = pytest.mark.slow

CORTEX_M4 = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")


@pytest.fixture(scope="module")
def large() -> TrainedModel:
    """An untrained model of the sizes of configs/shakespeare_gru.py."""
    trained = trained_like(ModelConfig(cell="gru", hidden=512, embed=128), text=CHARACTERS)
    assert round(sum(leaf.size for leaf in jax.tree.leaves(trained.params)) / 1e6, 2) == 1.03
    return trained


def needs(*programs: str) -> None:
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        pytest.skip(f"there is no {', '.join(missing)}")


def write(page, *, prompt: str, num_chars: int, temperature: float, seed: int) -> tuple[str, float]:
    """The text on the page, and the seconds that the page says it took."""
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Temperature").fill(str(temperature))
    page.get_by_label("Characters").fill(str(num_chars))
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.get_by_role("button", name="Write").click()
    status = page.get_by_role("status").filter(has_text=f"seed {seed}")
    status.wait_for()
    seconds = float(re.search(r" in ([\d.]+) s", status.text_content())[1])
    return page.locator("#text").text_content(), seconds


def test_chromium_writes_the_text_from_disk_without_a_network(open_page, large, tmp_path):
    path = tmp_path / "page.html"
    export_model(large, path, format="html")
    assert path.stat().st_size <= 1_600_000
    page, requests, messages = open_page(path)
    rates = []
    for seed, temperature in ((0, 0.8), (1, 1.0), (2**32 - 1, 0.6)):
        options = {"prompt": "ROMEO:", "num_chars": 500, "temperature": temperature, "seed": seed}
        text, seconds = write(page, **options)
        assert text.encode() == sampled(dequantize_model(large), **options)
        rates.append(500 / seconds)
    assert (requests, messages) == ([path.as_uri()], [])
    print(f"{path.stat().st_size:,} bytes; characters/s: {[round(rate) for rate in rates]}")
    assert sorted(rates)[1] >= 300


def test_the_page_stops_goes_on_and_refuses_an_unknown_character(open_page, large, tmp_path):
    export_model(large, tmp_path / "page.html", format="html")
    page, requests, messages = open_page(tmp_path / "page.html")
    page.get_by_label("Prompt").fill("ROMEO:")
    page.get_by_label("Characters").fill("100000")
    page.get_by_role("button", name="Write").press("Enter")
    page.locator("#text span").nth(50).wait_for()
    assert page.evaluate_handle("document.activeElement").get_attribute("id") == "stop"
    page.keyboard.press("Escape")
    page.get_by_role("status").filter(has_text="Stopped").wait_for()
    text = page.locator("#text").text_content()
    assert 50 < len(text) < 90_000
    assert page.evaluate_handle("document.activeElement").get_attribute("id") == "write"
    page.get_by_label("Characters").fill("20")
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("status").filter(has_text="20 characters").wait_for()
    options = {"prompt": text, "num_chars": 20, "temperature": 0.8, "seed": 0}
    assert page.locator("#text").text_content().encode() == sampled(
        dequantize_model(large), **options
    )
    page.get_by_label("Prompt").fill("ROMÉO")
    page.get_by_role("button", name="Write").click()
    assert "U+00C9" in page.get_by_role("alert").text_content()
    assert page.get_by_label("Prompt").get_attribute("aria-invalid") == "true"
    assert (len(requests), messages) == (1, [])


def test_the_page_writes_alternatives_and_goes_on_from_another_character(
    open_page, large, tmp_path
):
    export_model(large, tmp_path / "page.html", format="html")
    page, requests, messages = open_page(tmp_path / "page.html")
    options = {"prompt": "ROMEO:", "num_chars": 60, "temperature": 0.8, "seed": 4}
    filters = {"min_p": 0.05, "top_p": 0.9, "top_k": 9}
    for label, value in (("Min-p", 0.05), ("Top-p", 0.9), ("Top-k", 9), ("Alternatives", 3)):
        page.get_by_label(label).fill(str(value))
    write(page, **options)
    columns = page.locator(".alternative").all_text_contents()
    texts = sampled(dequantize_model(large), **options, **filters, num_samples=3).decode()
    assert ["ROMEO:" + column for column in columns] == texts.split("\0")
    page.get_by_role("button", name="Keep 2").click()
    assert page.locator("#text").text_content() == "ROMEO:" + columns[1]
    page.get_by_label("Alternatives").fill("1")
    page.locator("#text span").nth(5).click()
    other = page.locator(".likeliest button").first
    name = other.text_content()
    other.click()
    page.get_by_role("status").filter(has_text="60 characters").wait_for()
    text = page.locator("#text").text_content()
    assert text.startswith("ROMEO:" + columns[1][:5])
    assert len(name) > 1 or text[11] == name != columns[1][5]
    assert len(text) == 6 + 6 + 60
    page.get_by_role("button", name="Copy link").click()
    again, *_ = open_page(tmp_path / "page.html")
    again.goto(page.url)
    again.reload()
    again.get_by_role("status").filter(has_text="60 characters").wait_for()
    assert again.locator("#text").text_content() == text
    assert (len(requests), messages) == (1, [])


def test_a_cortex_m4_writes_the_text(tmp_path, caplog):
    needs("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
    caplog.set_level(logging.INFO, "charjax")
    trained = trained_like(ModelConfig(cell="gru", hidden=128, embed=64), text=CHARACTERS)
    export_model(trained, tmp_path / "model.c", format="c")
    compiler = ["arm-none-eabi-gcc", *STRICT, *CORTEX_M4]
    run([*compiler, "-c", "model.c", "-o", "model.o"], tmp_path)
    sizes = run(["arm-none-eabi-size", "model.o"], tmp_path).splitlines()[1].split()[:3]
    startup = str(Path(__file__).with_name("cortex_m4.c"))
    linked = ["--specs=rdimon.specs", "-Wl,--section-start=.vectors=0", "-lm", "-o", "model.elf"]
    run([*compiler, "-DCHARJAX_MAIN", "model.c", startup, *linked], tmp_path)
    for seed, temperature in ((0, 0.8), (1, 1.0), (2**32 - 1, 0.6)):
        arguments = ("model", "ROMEO:", 500, temperature, seed)
        semihosting = ",".join(f"arg={argument}" for argument in arguments)
        machine = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none"]
        machine += ["-serial", "none", "-kernel", "model.elf", "-semihosting-config"]
        text = run([*machine, f"enable=on,target=native,{semihosting}"], tmp_path)
        options = {"prompt": "ROMEO:", "num_chars": 500, "temperature": temperature, "seed": seed}
        assert text == sampled(dequantize_model(trained), **options)
    text_size, data, bss = map(int, sizes)
    print(f"{text_size + data:,} bytes of flash by size; {caplog.messages[0]}")
    assert text_size + data < 200_000
    assert bss == 0


def run(command: list[str], folder: Path) -> bytes:
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout
