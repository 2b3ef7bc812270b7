"""The notebooks: each .ipynb is made of the .py beside it, and runs from a new kernel."""

from __future__ import annotations

import ast
import importlib
import json

import pytest

from charjax import Config, DataConfig, ModelConfig, TrainConfig, load_trained
from charjax.train.loop import train

jupytext = pytest.importorskip("jupytext", reason="needs the extra dev")

from tests.notebooks import ROOT, SOURCES, make, run, to_json  # noqa: E402

NAMES = {"quickstart", "your_own_text", "from_the_tensorflow_tutorial"}


def test_there_are_three_notebooks_with_a_picture_in_the_docs():
    page = ROOT.joinpath("docs", "notebooks.md").read_text("utf-8")
    assert {source.stem for source in SOURCES} == NAMES
    for name in NAMES:
        assert f"(img/notebook-{name}.png)" in page
        assert 0 < (ROOT / "docs" / "img" / f"notebook-{name}.png").stat().st_size < 200_000


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_is_made_of_its_source_and_has_no_outputs(source):
    made = source.with_suffix(".ipynb").read_text("utf-8")
    assert made == to_json(source), "run python -m tests.notebooks"
    code = [cell for cell in json.loads(made)["cells"] if cell["cell_type"] == "code"]
    assert code
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_imports_names_that_there_are(source):
    nodes = list(ast.walk(ast.parse(source.read_text("utf-8"))))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("charjax"):
            module = importlib.import_module(node.module)
            assert not [name.name for name in node.names if not hasattr(module, name.name)]


@pytest.mark.parametrize("text", ["runs/story.txt", "runs/typo.txt", "texts/**/*.txt"])
def test_a_text_is_written_only_if_the_learner_names_none(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (cell,) = [
        cell.source
        for cell in make(ROOT / "notebooks" / "your_own_text.py").cells
        if "TEXT = " in cell.source
    ]
    exec(cell.replace('TEXT = "runs/story.txt"', f"TEXT = {text!r}"), {})
    written = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt")]
    assert written == ["runs/story.txt"] * (text == "runs/story.txt")


def test_the_score_of_a_list_is_that_of_its_run(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{a}{b}\u00e9\n" for a in "abcdef" for b in ("n", "or", "ell")))
    data = DataConfig(path=str(names), documents="lines", batch_size=2, seq_len=8)
    model, limits = ModelConfig(hidden=8, embed=4), TrainConfig(max_steps=2)
    progress = train(Config(data=data, model=model, train=limits), tmp_path / "run")
    scope = {"trained": load_trained(tmp_path / "run", which="best")}
    cells = make(ROOT / "notebooks" / "your_own_text.py").cells
    exec(next(cell.source for cell in cells if "result = " in cell.source), scope)
    assert scope["result"].nats_per_char == pytest.approx(progress.validation.best, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_runs_from_a_new_kernel(source, tmp_path):
    """Each in minutes, with the data at hand: `$CHARJAX_DATA_DIR`, else a text that comes along."""
    pytest.importorskip("nbclient", reason="needs the extra run-notebooks")
    cells = run(source, tmp_path).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    pictures = [html for o in outputs if "<svg" in (html := o.get("data", {}).get("text/html", ""))]
    assert len(pictures) == 1, "one picture, replaced in place"
    assert "<polyline" in pictures[0]
    for shown in ("cpu: ", "temperature 1.0 ---", "bits per character", ".html: "):
        assert shown in printed
    assert (tmp_path / "runs" / f"{source.stem}.html").exists()
