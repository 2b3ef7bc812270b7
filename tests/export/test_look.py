"""`charjax score --per_char` and the page of `charjax look`, from the public command."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from charjax.cli.main import main
from charjax.config import ModelConfig
from charjax.inference.load import load_builtin
from tests.export.tiny import trained_like

TEXT = "The cat <i>sat</i> on a mat.\nIt saw </script><script>alert(1)</script> some tea\n" * 12


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a text, in which the commands use a small random model."""
    model = trained_like(ModelConfig(cell="gru", hidden=12, embed=6), text=TEXT + "é")
    for command in ("look", "score"):
        monkeypatch.setattr(f"charjax.cli.commands.{command}.load_model", lambda *_: model)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def data_of(page: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="look">(.*)</script>', page)[1]
    )


def test_every_character_has_its_loss_its_rank_and_the_likeliest_ones(folder, capfd):
    assert main(["score", "--workdir=run", "--file=text.txt"]) == 0
    whole = json.loads(capfd.readouterr().out)
    assert main(["score", "--workdir=run", "--file=text.txt", "--per_char"]) == 0
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert "".join(record["character"] for record in records) == TEXT[1:]
    assert np.mean([r["nats"] for r in records]) == pytest.approx(whole["nats_per_char"], rel=1e-6)
    assert whole["bits_per_byte"] == pytest.approx(whole["bits_per_char"])
    for record in records[:50]:
        assert len(record["top"]) == 5
        at_rank = record["top"][record["rank"] - 1 : record["rank"]]
        assert all(entry["character"] == record["character"] for entry in at_rank)


def test_bits_per_byte_count_the_bytes_of_utf8(folder, capfd):
    Path("text.txt").write_text("cat é" * 9, encoding="utf-8")
    assert main(["score", "--workdir=run", "--file=text.txt"]) == 0
    score = json.loads(capfd.readouterr().out)
    assert score["bits_per_byte"] == pytest.approx(score["bits_per_char"] * 44 / (44 + 9))


def test_the_page_holds_the_text_its_surprises_and_all_activations(folder, capfd):
    assert main(["look", "--workdir=run", "--file=text.txt", "--out=page.html"]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "line position: unit" in err
    page = Path("page.html").read_text("utf-8")
    look = data_of(page)
    assert "".join(look["pieces"]) == TEXT
    assert page.count("alert(1)") == page.count("\\u003cscript>alert(1)")  # plain text alone
    assert set(look["activations"]) == {str(unit) for unit in range(12)}
    assert all("http" not in source for source in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert main(["look", "--workdir=run", "--file=text.txt", "--out=page.html"]) == 0
    Path("notes.txt").write_text("mine", encoding="utf-8")
    assert main(["look", "--workdir=run", "--file=text.txt", "--out=notes.txt"]) == 2
    assert Path("notes.txt").read_text("utf-8") == "mine"


def test_a_large_model_keeps_the_page_under_its_limit(folder, capfd, monkeypatch):
    monkeypatch.setattr("charjax.export.look._MAX_ACTIVATIONS", 7 * len(TEXT))
    monkeypatch.setattr("charjax.inference.inspection.units._BEST", 1)
    assert main(["look", "--workdir=run", "--file=text.txt", "--out=page.html"]) == 0
    assert "activations of 7 of the 12 units" in capfd.readouterr().err
    look = data_of(Path("page.html").read_text("utf-8"))
    assert len(look["activations"]) == 7
    best = {str(unit["number"]) for s in look["separations"] for unit in s["units"]}
    assert best <= set(look["activations"])


def test_what_look_cannot_read_or_write_is_one_line(folder, capfd):
    Path("short.txt").write_text("T", encoding="utf-8")
    for arguments, words in (
        (["--file=none.txt", "--out=page.html"], "none.txt"),
        (["--file=short.txt", "--out=page.html"], "short.txt: has no character to predict"),
        (["--file=text.txt", "--out=."], "is a folder"),
        (["--file=text.txt"], "--out"),
    ):
        assert main(["look", "--workdir=run", *arguments]) == 2
        err = capfd.readouterr().err
        assert words in err
        assert len(err.splitlines()) == 1
    assert not Path("page.html").exists()


def test_a_file_in_another_encoding_is_read_with_the_flags_of_score(folder, capfd):
    Path("wide.txt").write_text(TEXT, encoding="utf-16-le")
    command = ["look", "--workdir=run", "--file=wide.txt", "--out=page.html"]
    assert main(command) == 2
    assert main([*command, "--encoding=utf-16-le"]) == 0
    assert "".join(data_of(Path("page.html").read_text("utf-8"))["pieces"]) == TEXT


@pytest.mark.slow
def test_a_unit_of_the_built_in_model_tells_the_line_position(tmp_path, capfd):
    """On the validation part of tiny Shakespeare, as `CHARJAX_DATA_DIR` has it."""
    corpus = Path(os.environ.get("CHARJAX_DATA_DIR", "."), "shakespeare.txt")
    if not corpus.exists():
        pytest.skip("CHARJAX_DATA_DIR has no shakespeare.txt")
    text, page = tmp_path / "val.txt", tmp_path / "page.html"
    text.write_text(corpus.read_text("utf-8")[-111_540:], encoding="utf-8")
    assert main(["look", f"--file={text}", f"--out={page}"]) == 0
    look = data_of(page.read_text("utf-8"))
    (position,) = [s for s in look["separations"] if s["name"] == "line position"]
    print(position["units"], capfd.readouterr().err)
    assert position["units"][0]["reported"] >= 0.7
    assert page.stat().st_size < 20_000_000
    assert load_builtin().config.data.split[0] == 0.9  # the model was not trained on this part


@pytest.mark.slow
def test_chromium_colours_the_text_by_surprise_and_by_unit(folder, open_page):
    assert main(["look", "--workdir=run", "--file=text.txt", "--out=page.html"]) == 0
    page, requests, messages = open_page(folder / "page.html")
    assert page.locator("#text").text_content() == TEXT
    page.get_by_label("Surprise").check()
    assert page.locator("#text span.s5").count() > 0
    page.get_by_label("Unit", exact=True).fill("3")
    assert page.locator("#text").locator("span[class^=p], span[class^=n]").count() > 100
    page.get_by_label("Surprise").check()
    page.get_by_label("Unit", exact=True).fill("999")
    page.get_by_label("Activation of unit").click()
    assert page.get_by_label("Surprise").is_checked(), "there is no unit 999"
    page.get_by_label("Unit", exact=True).fill("3")
    page.locator("#text").focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    shown = page.locator("#character").text_content()
    assert re.match(r"3\d: .*unit 3: .* nats, rank \d+Likeliest here", shown), shown
    page.get_by_role("button", name=re.compile("falls|rises")).first.click()
    assert (requests, messages) == ([(folder / "page.html").as_uri()], [])
    page.get_by_label("Surprise").check()
    page.goto("about:blank")
    page.go_back()
    page.locator("#text span.selected").wait_for()
    is_shown = page.locator("#surprise-legend").is_visible()
    assert page.get_by_label("Surprise").is_checked() == is_shown
