"""A model in the layout of a hub is the same for every command, and is not trained in place."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from charjax.checkpoint.meta import SourceMeta
from charjax.cli.main import main
from charjax.errors import CheckpointError, InputError
from charjax.export.api import FORMATS, export_model, round_to_bfloat16
from charjax.export.conversion.convert import convert
from charjax.export.hub import hub_files
from charjax.export.weights import named_weights
from charjax.inference.load import load_trained
from charjax.runtime.safetensors import read_safetensors, safetensors_file
from tests.export.tiny import MODELS, trained_like

# ml_collections loads config files by a function that Python deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder, made by a conversion, which takes no training."""
    folder = tmp_path_factory.mktemp("run")
    export_model(trained_like(MODELS["gru-1-embed"], unk=True), folder / "torch", format="torch")
    torch = folder / "torch"
    convert(torch / "model.safetensors", "torch", torch / "vocabulary.json", folder / "run")
    return folder / "run"


@pytest.fixture
def hub(run, tmp_path) -> Path:
    """The same, by the command, as a folder of a hub."""
    assert main(["export", f"--workdir={run}", f"--out={tmp_path}/hub", "--format=hub"]) == 0
    return tmp_path / "hub"


def test_every_command_reads_it_as_the_run_itself(run, hub, tmp_path, capfd):
    assert {"README.md", "config.json", "model.safetensors", "vocabulary.json"} <= {
        path.name for path in hub.iterdir()
    }
    one, other = (load_trained(folder, which="best") for folder in (run, hub))
    arrays = named_weights(other.params)
    for name, array in named_weights(one.params).items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    assert (one.config.model, one.vocab, one.step) == (other.config.model, other.vocab, other.step)
    (tmp_path / "text.txt").write_text("the cat sat on a mat")
    for command in (
        "sample --num_chars=20 --seed=2",
        f"score --file={tmp_path}/text.txt",
        "info",
    ):
        capfd.readouterr()
        said = []
        for folder in (run, hub):
            assert main([*command.split(), f"--workdir={folder}"]) == 0
            said.append(capfd.readouterr().out)
        assert said[0] == said[1]
    assert main(["verify", f"--workdir={hub}"]) == 0
    assert json.loads(capfd.readouterr().out) == {"0": "good"}
    assert main(["export", f"--workdir={hub}", f"--out={tmp_path}/again", "--format=hub"]) == 0
    for name in ("model.safetensors", "vocabulary.json", "README.md", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (hub / name).read_bytes()


def test_the_card_has_metadata_that_a_hub_reads_and_no_folder_of_the_user(hub, run):
    card = (hub / "README.md").read_text()
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    metadata = {
        line.partition(": ")[0]: json.loads(line.partition(": ")[2]) for line in front.splitlines()
    }
    assert metadata["library_name"] == "charjax"
    assert metadata["pipeline_tag"] == "text-generation"
    assert {"gru", "character-level"} <= set(metadata["tags"])
    assert "## Limits" in body
    assert "## Use" in body
    for name in ("README.md", "config.json"):
        assert str(run.parent) not in (hub / name).read_text()


def test_the_card_of_a_fine_tuned_model_names_the_one_that_its_weights_are_from(tmp_path):
    trained = trained_like(MODELS["gru-1-embed"])
    source = SourceMeta("charjax", "/home/me/base", "ab" * 32, 1200, trained.vocab.to_json())
    fine_tuned = replace(trained, run=replace(trained.run, source=source))
    for model, folder in ((trained, "random"), (fine_tuned, "tuned")):
        export_model(model, tmp_path / folder, format="hub")
        card = (tmp_path / folder / "README.md").read_text("utf-8")
        said = f"\nIts first weights are those of base, step 1,200, SHA-256 `{'ab' * 32}`.\n"
        assert (said in card) == (model is fine_tuned)
        words = load_trained(tmp_path / folder, which="best").training
        assert words.endswith(", from the weights of base") == (model is fine_tuned)


@pytest.mark.parametrize("name", ["\U0001f600 a.txt", "\\ud83d\\ude00", "\"'\u2028\x85\x7f\n: #-"])
def test_the_card_s_metadata_are_yaml_whatever_the_text_is_called(name):
    yaml = pytest.importorskip("yaml")
    trained = replace(trained_like(MODELS["gru-1-embed"]), val_loss=1.0)
    corpus = replace(trained.run.corpus, name=name)
    card = hub_files(replace(trained, run=replace(trained.run, corpus=corpus)))["README.md"]
    front = card.decode().removeprefix("---\n").split("\n---\n", 1)[0]
    (index,) = yaml.safe_load(front)["model-index"]
    assert index["results"][0]["dataset"]["name"] == name


@pytest.mark.parametrize(
    "name", ["a\n\n# b", "*a* _b_ `c` <i>d</i> [e](f) ~~g~~ #", r"a\*b &lt; | $x$", "1_2_3.txt"]
)
def test_the_card_shows_names_and_notices_as_they_are(name):
    trained = trained_like(MODELS["gru-1-embed"])
    corpus = replace(trained.run.corpus, name=name, notice=name)
    card = hub_files(replace(trained, run=replace(trained.run, corpus=corpus)))["README.md"]
    body = card.decode().split("\n---\n", 1)[1]
    parsed = MarkdownIt().enable(["strikethrough", "table"]).parse(body)
    inlines = [token.children for token in parsed if token.type == "inline"]
    shown = ["".join(part.content for part in parts) for parts in inlines]
    line = " ".join(name.split())
    assert shown[0] == f"gru-1x12-{line}"
    assert any(text.startswith(f"Trained for 7 steps on {line}, ") for text in shown)
    assert f"Notice: {line}" in shown


def test_rounded_weights_take_half_the_space_and_are_read_as_they_are(tmp_path):
    trained = replace(trained_like(MODELS["lstm-3-one_hot"]), val_loss=1.0)
    whole, half = hub_files(trained), hub_files(round_to_bfloat16(trained))
    assert len(half["model.safetensors"]) < 0.6 * len(whole["model.safetensors"])
    said = b"bits) per character before its weights were rounded to bfloat16."
    assert (said in half["README.md"], said in whole["README.md"]) == (True, False)


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_of_it_does_not_replace_it(format, hub, tmp_path, capfd):
    before = {path.name: path.read_bytes() for path in hub.iterdir()}
    (tmp_path / "link").symlink_to(hub)
    words = ["export", f"--workdir={hub}", f"--format={format}", "--weights=bfloat16"]
    for out in (hub, tmp_path / "link"):
        assert main([*words, f"--out={out}"]) == 2
        assert f"--out={out}: " in capfd.readouterr().err
    assert {path.name: path.read_bytes() for path in hub.iterdir()} == before


def test_training_into_it_is_refused(hub, tmp_path, capfd):
    before = {path.name: path.read_bytes() for path in hub.iterdir()}
    (tmp_path / "text.txt").write_text("the cat sat on a mat and saw some tea\n" * 60)
    config = Path(__file__).parents[2] / "configs" / "quickstart.py"
    flags = [f"--config={config}", f"--config.data.path={tmp_path}/text.txt", f"--workdir={hub}"]
    assert main(["train", *flags]) == 2
    assert f"train on with --init_from={hub} in another --workdir" in capfd.readouterr().err
    assert {path.name: path.read_bytes() for path in hub.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model.safetensors", lambda data: data[:-1] + b"\x07", "differs from its digest"),
        ("vocabulary.json", lambda data: data + b" ", "differs from its digest"),
        ("config.json", lambda data: b"[]", "not a JSON object"),
        ("config.json", lambda data: b"{" * 10**5, "not JSON"),
        ("config.json", lambda data: data.replace(b'"format": 1', b'"format": 9'), "format=9"),
        ("config.json", lambda data: data.replace(b'"hidden": 12', b'"hidden": 13'), "not ["),
        ("config.json", lambda data: data.replace(b'"layers": 1', b'"layers": 2'), "must have"),
        ("config.json", lambda data: data.replace(b'"cell": "gru"', b'"cell": "abc"'), "cell"),
    ],
)
def test_a_damaged_one_is_refused_in_one_line(name, change, said, hub, capfd):
    (hub / name).write_bytes(change((hub / name).read_bytes()))
    capfd.readouterr()
    assert main(["sample", f"--workdir={hub}"]) == 3
    message = capfd.readouterr().err
    assert said in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda array: array.astype(np.int32), "is int32, not floating point"),
        (lambda array: array.astype(np.float64) * 1e300, "is not finite in float32"),
    ],
)
def test_weights_that_are_no_float32_are_refused(change, said, hub, capfd):
    file, config = hub / "model.safetensors", json.loads((hub / "config.json").read_text())
    changed = {name: change(array) for name, array in read_safetensors(file)[0].items()}
    file.write_bytes(safetensors_file(changed, {}))
    config["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (hub / "config.json").write_text(json.dumps(config))
    assert main(["sample", f"--workdir={hub}"]) == 3
    assert said in capfd.readouterr().err


@pytest.mark.usefixtures("unchecked_types")
def test_it_has_one_step(hub):
    assert load_trained(hub, which=0).step == 0
    with pytest.raises(CheckpointError, match="has no step 7; its only one is 0"):
        load_trained(hub, which=7)
    with pytest.raises(InputError, match=r"^which='0': must be best, newest or the number"):
        load_trained(hub, which="0")


def test_without_onnx_the_folder_has_no_graph(monkeypatch, caplog):
    def missing(trained: object) -> bytes:
        raise InputError("export: the package onnx is not installed")

    monkeypatch.setattr("charjax.export.onnx_graph.onnx_model", missing)
    with caplog.at_level("INFO"):
        assert "model.onnx" not in FORMATS["hub"](trained_like(MODELS["gru-1-embed"]))
    assert "without model.onnx" in caplog.text


# The built-in model


def test_sample_without_a_workdir_writes_with_the_built_in_model(capfd):
    assert main(["sample", "--num_chars=40", "--seed=1", "--prompt=ROMEO:"]) == 0
    first = capfd.readouterr()
    assert first.out.startswith("ROMEO:")
    assert len(first.out) >= 46
    assert "built-in model, gru 1 x 256, trained on shakespeare" in first.err
    folder = Path(__file__).parents[2] / "charjax" / "builtin"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10**6


def test_the_built_in_model_is_that_of_its_config():
    from charjax.inference.load import load_builtin

    trained = load_builtin()
    assert trained.val_loss < 1.5
    assert trained.config.model.recurrence == "xla"  # no wait for the C loops to be compiled
