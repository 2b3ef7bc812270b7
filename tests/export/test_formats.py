"""Every exported form has the model's logits and, where it samples, its text (invariant 8)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from charjax.checkpoint.meta import SourceMeta
from charjax.config import DataConfig, ModelConfig, TrainConfig, to_dict
from charjax.data.vocab import Vocab
from charjax.errors import HostError, InputError
from charjax.export import files
from charjax.export.api import ANY_MODEL, FORMATS, export_model, unusual_parts
from charjax.export.keras import keras_weights
from charjax.export.torch import torch_weights
from charjax.model.recurrence.resolution import Resolution
from tests.export.runners import run_script
from tests.export.tiny import (
    HOT,
    MODELS,
    SAMPLES,
    any_model,
    module_of,
    network_logits,
    sampled,
    tokens_of,
    trained_like,
    with_boundary,
)
from tests.inference.scripted import changed

GRU = MODELS["gru-1-embed"]

# numpy


@any_model
def test_the_numpy_script_samples_the_same_text(model, tmp_path):
    trained = trained_like(model, unk=model.cell == "lstm")
    export_model(trained, tmp_path / "out", format="numpy")
    script, prompt = module_of(tmp_path / "out" / "generate.py"), trained.vocab.encode("the c")
    for seed, temperature in (*SAMPLES, HOT):
        options = {"num_chars": 500, "seed": seed, "temperature": temperature}
        with np.errstate(over="ignore"):
            ids = list(script.generate(script.Model(), prompt, **options))
        text = trained.vocab.decode(np.array([*prompt, *ids])).encode()
        assert text == sampled(trained, prompt="the c", **options)


@pytest.mark.parametrize(
    ("change", "unit", "prompt"),
    [
        (lambda trained: trained, "codepoint", "the c"),
        (lambda trained: trained, "byte", "é"),
        (with_boundary, "codepoint", "t"),
    ],
    ids=["characters", "bytes", "documents"],
)
def test_the_numpy_script_runs_without_jax(change, unit, prompt, tmp_path):
    trained = change(trained_like(GRU, unit=unit))
    export_model(trained, tmp_path / "out", format="numpy")
    options = {"prompt": prompt, "num_chars": 200, "seed": 2, "temperature": 1.5}
    done = run_script(tmp_path / "out", **options)
    text = done.stdout.decode("utf-8", "replace")
    assert (done.returncode, done.stderr) == (0, b"")
    assert text.encode() == sampled(trained, **options)
    assert (len(text) < 200) == trained.vocab.boundary


@pytest.mark.parametrize(
    ("unit", "prompt", "said"),
    [("codepoint", "Z", b"U+005A"), ("byte", "the \udcff", b"byte 0xFF")],
    ids=["characters", "bytes that are not UTF-8"],
)
def test_the_numpy_script_names_what_it_does_not_know(unit, prompt, said, tmp_path):
    export_model(trained_like(GRU, unit=unit), tmp_path / "out", format="numpy")
    done = run_script(tmp_path / "out", prompt=prompt)
    assert (done.returncode, b"not in the vocabulary: " + said in done.stderr) == (2, True)


@any_model
def test_the_numpy_model_has_the_networks_logits(model, tmp_path):
    trained = trained_like(model)
    export_model(trained, tmp_path / "out", format="numpy")
    reader, tokens = (
        module_of(tmp_path / "out" / "generate.py").Model(),
        tokens_of(trained, 1, 1000),
    )
    logits = []
    for token in tokens[0]:
        reader.read(token)
        logits.append(reader.logits)
    np.testing.assert_allclose(np.array(logits)[None], network_logits(trained, tokens), atol=1e-5)


# ONNX


@any_model
def test_the_onnx_graph_has_the_networks_logits_whole_and_step_by_step(model, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    trained = trained_like(model)
    export_model(trained, tmp_path / "model.onnx", format="onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    tokens = tokens_of(trained, 3, 40)
    want = network_logits(trained, tokens)
    zeros = np.zeros((1, 3, model.hidden), np.float32)
    carry = {i.name: zeros for i in session.get_inputs() if i.name != "tokens"}
    whole = session.run(None, {"tokens": tokens, **carry})
    np.testing.assert_allclose(whole[0], want, atol=1e-5)
    for t in range(tokens.shape[1]):
        logits, *after = session.run(None, {"tokens": tokens[:, t : t + 1], **carry})
        np.testing.assert_allclose(logits[:, 0], want[:, t], atol=1e-5)
        carry = dict(zip(carry, after, strict=True))
    for stepped, at_once in zip(carry.values(), whole[1:], strict=True):
        np.testing.assert_allclose(stepped, at_once, atol=1e-5)


def test_the_onnx_graph_carries_its_vocabulary(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    trained = trained_like(GRU, unk=True)
    export_model(trained, tmp_path / "model.onnx", format="onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    vocabulary = json.loads(facts["vocabulary"])
    assert vocabulary.pop("start") == trained.vocab.start
    assert Vocab.from_json(vocabulary) == trained.vocab
    sampling = json.loads(facts["sampling"])
    assert (sampling["masked"], sampling["end"]) == ([trained.vocab.unk_id], None)


# torch and Keras


def torch_logits(weights: dict, config: ModelConfig, tokens: np.ndarray) -> np.ndarray:
    """The forward pass of torch's documentation, in numpy."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    x = weights["embedding.weight"][tokens]
    for i in range(config.layers):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        w_i, w_h, b_i, b_h = (weights[f"rnn.{name}_l{i}"] for name in names)
        h = c = np.zeros((len(tokens), config.hidden), np.float32)
        outputs = []
        for t in range(tokens.shape[1]):
            gates = x[:, t] @ w_i.T + b_i, h @ w_h.T + b_h
            if config.cell == "rnn":
                h = np.tanh(sum(gates))
            elif config.cell == "lstm":
                in_, forget, cell, out = np.split(sum(gates), 4, axis=1)
                c = sigmoid(forget) * c + sigmoid(in_) * np.tanh(cell)
                h = sigmoid(out) * np.tanh(c)
            else:
                (x_r, x_z, x_n), (h_r, h_z, h_n) = (np.split(g, 3, axis=1) for g in gates)
                z = sigmoid(x_z + h_z)
                h = (1 - z) * np.tanh(x_n + sigmoid(x_r + h_r) * h_n) + z * h
            outputs.append(h)
        x = np.stack(outputs, axis=1)
    return x @ weights["head.weight"].T + weights["head.bias"]


@any_model
def test_the_torch_weights_fit_torchs_formulas(model):
    trained = trained_like(model)
    tokens = tokens_of(trained, 2, 30)
    logits = torch_logits(torch_weights(model, trained.params), model, tokens)
    np.testing.assert_allclose(logits, network_logits(trained, tokens), atol=1e-5)


def test_the_keras_gru_has_keras_gate_order():
    params = trained_like(GRU).params
    kernel = keras_weights(GRU, params)["layers/gru/cell/vars/0"]
    reset, update, candidate = np.split(params["layer_0"]["kernel"], 3, axis=1)
    np.testing.assert_array_equal(kernel, np.concatenate([update, reset, candidate], axis=1))


@pytest.mark.parametrize("format", ["torch", "keras"])
def test_weights_come_with_their_tokens_and_how_to_sample_them(format, tmp_path):
    trained = with_boundary(trained_like(GRU, unk=True))
    export_model(trained, tmp_path / "out", format=format)
    vocabulary, sampling = (
        json.loads((tmp_path / "out" / f"{name}.json").read_text("utf-8"))
        for name in ("vocabulary", "sampling")
    )
    vocab = trained.vocab
    assert vocabulary.pop("start") == vocab.start
    assert Vocab.from_json(vocabulary) == vocab
    assert (sampling["masked"], sampling["end"]) == ([vocab.unk_id], vocab.boundary_id)
    assert "fold_in(key(seed), 2)" in sampling["noise"]


# Models that a format cannot hold

PLAIN_FORMATS = sorted(FORMATS.keys() - ANY_MODEL)


@pytest.mark.parametrize("format", PLAIN_FORMATS)
def test_a_model_with_a_part_that_the_format_lacks_is_refused(format, tmp_path):
    other = trained_like(dataclasses.replace(GRU, cell="mingru"))
    with pytest.raises(InputError, match=rf"^--format={format}: cannot hold model.cell=mingru;"):
        export_model(other, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_an_identity_matrix_that_a_format_cannot_hold_is_refused(tmp_path, caplog):
    caplog.set_level("INFO", "charjax")
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 23_171)))
    large = trained_like(ModelConfig(cell="rnn", hidden=1, embed=0), text=text)
    for format in ("onnx", "torch", "keras"):
        with pytest.raises(InputError, match=r"one-hot input of 23,171 tokens .*--format=program"):
            export_model(large, tmp_path / "out", format=format)
    export_model(large, tmp_path / "hub", format="hub")
    assert "without model.onnx" in caplog.text
    assert not (tmp_path / "hub" / "model.onnx").exists()


def test_every_format_holds_a_model_that_was_trained_with_any_dropout():
    rates = dict.fromkeys((f for f in to_dict(ModelConfig()) if "dropout" in f), 0.5)
    assert len(rates) >= 5
    assert unusual_parts(trained_like(GRU).with_model(**rates)) == []


def test_a_field_that_no_format_knows_is_a_part_to_refuse(monkeypatch):
    trained = trained_like(GRU)
    assert unusual_parts(trained) == []
    monkeypatch.setattr("charjax.export.api._SIZES", ("cell", "layers", "embed", "dtype"))
    assert unusual_parts(trained) == ["model.hidden=12"]


# Files


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_may_be_repeated_and_has_the_same_bytes(format, tmp_path):
    out = tmp_path / "out"
    exports = []
    for _ in range(2):
        export_model(trained_like(GRU), out, format=format)
        paths = out.iterdir() if out.is_dir() else [out]
        exports.append({path.name: path.read_bytes() for path in paths})
    assert exports[0] == exports[1]


@pytest.mark.parametrize("is_link", [False, True], ids=["file", "link"])
@pytest.mark.parametrize(
    ("format", "name"),
    [("numpy", "out/generate.py"), ("numpy", "out/charjax-export.json"), ("c", "out")],
)
def test_an_export_overwrites_no_file_of_another_kind(format, name, is_link, tmp_path):
    mine, there = tmp_path / "mine", tmp_path / name
    mine.write_text("mine")
    there.parent.mkdir(exist_ok=True)
    if is_link:
        there.symlink_to(mine)
    else:
        mine.replace(there)
    with pytest.raises(InputError, match="was not written by charjax export"):
        export_model(trained_like(GRU), tmp_path / "out", format=format)
    assert there.read_text() == "mine"


def test_a_folder_holds_the_last_export_and_no_file_of_an_earlier_one(tmp_path):
    trained, out = trained_like(GRU), tmp_path / "out"
    export_model(trained, out, format="numpy")
    (out / "notes").write_text("mine")
    manifest = json.loads((out / "charjax-export.json").read_text())
    manifest["files"] += ["../mine", "", ".."]  # damaged
    (out / "charjax-export.json").write_text(json.dumps(manifest))
    (tmp_path / "mine").write_text("mine")
    for format, script in (("torch", "model.py"), ("numpy", "generate.py")):
        export_model(trained, out, format=format)
        assert [p.name for p in out.glob("*.py")] == [script]
    assert (out / "notes").read_text() == (tmp_path / "mine").read_text() == "mine"


def test_an_interrupted_export_can_be_repeated(tmp_path, monkeypatch):
    trained, replace = trained_like(GRU), files.replace_content

    def full(path: Path, content: bytes) -> None:
        if path.name == "vocabulary.json":
            raise HostError("No space left on device")
        replace(path, content)

    monkeypatch.setattr(files, "replace_content", full)
    with pytest.raises(HostError, match="No space left"):
        export_model(trained, tmp_path / "out", format="numpy")
    monkeypatch.undo()
    export_model(trained, tmp_path / "out", format="numpy")
    assert (tmp_path / "out" / "vocabulary.json").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_names_no_folder_of_the_user(format, tmp_path):
    trained, out = trained_like(GRU), tmp_path / "out"
    paths = r"/home/secret/tea.txt,C:\secret\cup.txt"  # of any system
    config = dataclasses.replace(
        trained.config,
        data=DataConfig(path=paths),
        train=TrainConfig(max_steps=1, init_from="/home/secret/run"),
    )
    source = SourceMeta("charjax", "/home/secret/run", "00")
    corpus = dataclasses.replace(trained.run.corpus, name=paths)
    reason = "c refuses: /home/secret/bin/gcc fails: /home/secret/charjax/gru.c:1:1: error"
    recurrence = Resolution("xla", reason)
    parts = {"config": config, "corpus": corpus, "source": source, "recurrence": recurrence}
    export_model(changed(trained, **parts), out, format=format)
    for file in out.iterdir() if out.is_dir() else [out]:
        assert b"secret" not in file.read_bytes()
        assert str(Path(files.__file__).parents[2]).encode() not in file.read_bytes()
    if format == "numpy":
        assert b"tea.txt,cup.txt" in (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("format", "name", "said"),
    [
        ("numpy", "mine/out", r"^--out=.*out: a folder above it is a file"),
        ("c", "mine/out", r"^--out=.*out: a folder above it is a file"),
        ("numpy", "mine", r"^--out=.*mine: is a file; name a folder"),
        ("c", ".", r"^--out=.*: is a folder; name a file in it"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_refused(format, name, said, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match=said):
        export_model(trained_like(GRU), tmp_path / name, format=format)


def test_an_unknown_format_is_named(tmp_path):
    with pytest.raises(InputError, match=r"^--format=pdf: no such format; there are program, "):
        export_model(trained_like(GRU), tmp_path / "out", format="pdf")
