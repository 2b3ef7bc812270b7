"""Every exported form has the model's logits and, where it samples, its text (invariant 8)."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from charjax.config import DataConfig, ModelConfig, TrainConfig, to_dict
from charjax.data.vocab import Vocab
from charjax.errors import HostError, InputError
from charjax.export import files
from charjax.export.api import FORMATS, export_model, unusual_parts
from charjax.export.weights import keras_weights, torch_weights
from tests.export.tiny import (
    MODELS,
    any_model,
    module_of,
    network_logits,
    sampled,
    tokens_of,
    trained_like,
)

# numpy


def run_script(folder: Path, **options) -> subprocess.CompletedProcess:
    """generate.py in a process that can import numpy and nothing else of ours."""
    blocked = "; ".join(f"sys.modules['{name}'] = None" for name in ("jax", "charjax"))
    program = f"import sys, runpy; {blocked}; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-c", program, str(folder / "generate.py"), *flags]
    return subprocess.run(command, capture_output=True, check=False, cwd=folder)


NUM_CHARS = 300  # more than the sampler's chunk; 500 with -m slow
SAMPLES = ((0, 1.0), (2**32 - 1, 0.7), (5, 0.0))  # seed, temperature


@any_model
def test_the_numpy_script_samples_the_same_text(model, tmp_path):
    trained = trained_like(model, unk=model.cell == "lstm")
    export_model(trained, tmp_path / "out", format="numpy")
    script, prompt = module_of(tmp_path / "out" / "generate.py"), trained.vocab.encode("the c")
    for seed, temperature in SAMPLES:
        options = {
            "prompt": "the c",
            "num_chars": NUM_CHARS,
            "seed": seed,
            "temperature": temperature,
        }
        with np.errstate(over="ignore"):
            ids = list(script.generate(prompt, NUM_CHARS, temperature, seed))
        assert trained.vocab.decode(np.array([*prompt, *ids])).encode() == sampled(
            trained, **options
        )


def test_the_numpy_script_names_a_byte_that_is_not_utf8(tmp_path):
    trained = trained_like(MODELS["gru-1-embed"], unit="byte")
    export_model(trained, tmp_path / "out", format="numpy")
    done = run_script(tmp_path / "out", prompt="the \udcff")  # how Python decodes the byte 0xFF
    assert (done.returncode, b"not in the vocabulary: byte 0xFF" in done.stderr) == (2, True)


def test_the_numpy_script_runs_without_jax(tmp_path):
    trained = trained_like(MODELS["gru-1-embed"])
    export_model(trained, tmp_path / "out", format="numpy")
    options = {"prompt": "the c", "num_chars": 60, "seed": 3, "temperature": 0.9}
    done = run_script(tmp_path / "out", **options)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == sampled(trained, **options)


def test_the_numpy_script_reads_and_writes_bytes(tmp_path):
    trained = trained_like(MODELS["gru-1-embed"], unit="byte")
    export_model(trained, tmp_path / "out", format="numpy")
    script = module_of(tmp_path / "out" / "generate.py")
    prompt = [trained.vocab.encode("é").tolist()][0]
    with np.errstate(over="ignore"):
        ids = list(script.generate(prompt, 40, 1.0, 3))
    options = {"prompt": "é", "num_chars": 40, "seed": 3, "temperature": 1.0}
    assert trained.vocab.decode(np.array(prompt + ids)).encode() == sampled(trained, **options)
    assert run_script(tmp_path / "out", **options).stdout.startswith("é".encode())


def test_the_numpy_script_ends_with_the_document(tmp_path):
    trained = trained_like(MODELS["gru-1-embed"])
    vocab = dataclasses.replace(
        trained.vocab, characters=trained.vocab.characters[:-1], boundary=True
    )
    trained = dataclasses.replace(trained, vocab=vocab)
    export_model(trained, tmp_path / "out", format="numpy")
    lengths = set()
    for seed in range(3):
        options = {"prompt": "t", "num_chars": 200, "seed": seed, "temperature": 1.5}
        text = sampled(trained, **options)
        assert run_script(tmp_path / "out", **options).stdout == text
        lengths.add(len(text))
    assert min(lengths) < 200


def test_the_numpy_script_reads_a_prompt_as_the_command_does(tmp_path):
    trained = trained_like(MODELS["gru-1-embed"])
    data = dataclasses.replace(trained.config.data, lowercase=True)
    trained = dataclasses.replace(trained, config=dataclasses.replace(trained.config, data=data))
    export_model(trained, tmp_path / "out", format="numpy")
    options = {"prompt": "THE C", "num_chars": 60, "seed": 3, "temperature": 0.9}
    assert run_script(tmp_path / "out", **options).stdout == sampled(trained, **options)


def test_the_numpy_script_names_an_unknown_character(tmp_path):
    export_model(trained_like(MODELS["gru-1-embed"]), tmp_path / "out", format="numpy")
    done = run_script(tmp_path / "out", prompt="Z", num_chars=5, seed=0, temperature=1)
    assert done.returncode == 2
    assert b"U+005A" in done.stderr


@any_model
def test_the_numpy_model_has_the_networks_logits(model, tmp_path):
    trained = trained_like(model)
    export_model(trained, tmp_path / "out", format="numpy")
    reader, tokens = module_of(tmp_path / "out" / "generate.py").Model(), tokens_of(trained, 1, 50)
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
    trained = trained_like(MODELS["gru-1-embed"], unk=True)
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


@pytest.mark.slow
@any_model
def test_the_torch_module_has_the_networks_logits(model, tmp_path):
    torch = pytest.importorskip("torch")
    trained = trained_like(model)
    export_model(trained, tmp_path / "out", format="torch")
    module = module_of(tmp_path / "out" / "model.py").load()
    tokens = tokens_of(trained, 2, 100)
    with torch.no_grad():
        logits, _ = module(torch.from_numpy(tokens))
    np.testing.assert_allclose(logits.numpy(), network_logits(trained, tokens), atol=1e-5)


@pytest.mark.slow
@any_model
def test_the_keras_model_has_the_networks_logits(model, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip("keras")
    trained = trained_like(model)
    export_model(trained, tmp_path / "out", format="keras")
    tokens = tokens_of(trained, 2, 100)
    with jax.numpy_rank_promotion("allow"):
        logits = np.asarray(module_of(tmp_path / "out" / "model.py").load()(tokens))
    np.testing.assert_allclose(logits, network_logits(trained, tokens), atol=1e-5)


def test_the_keras_gru_has_keras_gate_order():
    model = MODELS["gru-1-embed"]
    params = trained_like(model).params
    kernel = keras_weights(model, params)["layers/gru/cell/vars/0"]
    reset, update, candidate = np.split(params["layer_0"]["kernel"], 3, axis=1)
    np.testing.assert_array_equal(kernel, np.concatenate([update, reset, candidate], axis=1))


@pytest.mark.parametrize("format", ["torch", "keras"])
def test_weights_come_with_their_tokens_and_how_to_sample_them(format, tmp_path):
    trained = trained_like(MODELS["gru-1-embed"], unk=True)
    vocab = dataclasses.replace(
        trained.vocab, characters=trained.vocab.characters[:-1], boundary=True
    )
    trained = dataclasses.replace(trained, vocab=vocab)
    export_model(trained, tmp_path / "out", format=format)
    vocabulary, sampling = (
        json.loads((tmp_path / "out" / f"{name}.json").read_text("utf-8"))
        for name in ("vocabulary", "sampling")
    )
    assert vocabulary.pop("start") == vocab.start
    assert Vocab.from_json(vocabulary) == vocab
    assert (sampling["masked"], sampling["end"]) == ([vocab.unk_id], vocab.boundary_id)
    assert "fold_in(key(seed), 2)" in sampling["noise"]


# Models that a format cannot hold

PLAIN_FORMATS = [name for name in FORMATS if not FORMATS[name].any_model]


@pytest.mark.parametrize("format", PLAIN_FORMATS)
def test_a_model_with_a_part_that_the_format_lacks_is_refused(format, tmp_path):
    """Layer normalization, another cell, another field of the model: by whatever name."""
    trained = trained_like(MODELS["gru-1-embed"])
    layer = trained.params["layer_0"] | {"norm": {"scale": np.ones(12, np.float32)}}
    normalized = dataclasses.replace(trained, params=trained.params | {"layer_0": layer})
    cell = dataclasses.replace(trained.config.model, cell="mingru")
    other = dataclasses.replace(trained, config=dataclasses.replace(trained.config, model=cell))
    for model, part in ((normalized, "layer_0.norm.scale"), (other, "model.cell=mingru")):
        with pytest.raises(InputError, match=rf"^--format={format}: cannot hold {part};"):
            export_model(model, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_every_format_holds_a_model_that_was_trained_with_any_dropout():
    trained = trained_like(MODELS["gru-1-embed"])
    model = trained.config.model
    rates = dict.fromkeys((f for f in to_dict(model) if "dropout" in f), 0.5)
    assert len(rates) >= 5
    config = dataclasses.replace(trained.config, model=dataclasses.replace(model, **rates))
    assert unusual_parts(dataclasses.replace(trained, config=config)) == []


def test_a_field_that_no_format_knows_is_a_part_to_refuse(monkeypatch):
    trained = trained_like(MODELS["gru-1-embed"])
    assert unusual_parts(trained) == []
    monkeypatch.setattr("charjax.export.api._SIZES", ("cell", "layers", "embed", "dtype"))
    assert unusual_parts(trained) == ["model.hidden=12"]


# Files


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_may_be_repeated_and_overwrites_nothing_else(format, tmp_path):
    trained, out = trained_like(MODELS["gru-1-embed"]), tmp_path / "out"
    for _ in range(2):
        export_model(trained, out, format=format)
    written = sorted(out.iterdir()) if out.is_dir() else [out]
    for path in written:
        foreign = tmp_path / "foreign" / path.relative_to(tmp_path)
        foreign.parent.mkdir(parents=True, exist_ok=True)
        foreign.write_text("mine")
        target = tmp_path / "foreign" / "out"
        with pytest.raises(InputError, match="was not written by charjax export"):
            export_model(trained, target, format=format)
        assert foreign.read_text() == "mine"
        foreign.unlink()


def test_a_folder_holds_the_last_export_and_no_file_of_an_earlier_one(tmp_path):
    trained, out = trained_like(MODELS["gru-1-embed"]), tmp_path / "out"
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
    trained, replace = trained_like(MODELS["gru-1-embed"]), files._replace

    def full(path: Path, content: bytes) -> None:
        if path.name == "vocabulary.json":
            raise OSError(28, "No space left on device")
        replace(path, content)

    monkeypatch.setattr(files, "_replace", full)
    with pytest.raises(HostError, match="No space left"):
        export_model(trained, tmp_path / "out", format="numpy")
    monkeypatch.undo()
    export_model(trained, tmp_path / "out", format="numpy")
    assert (tmp_path / "out" / "vocabulary.json").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_names_no_folder_of_the_user(format, tmp_path):
    trained, out = trained_like(MODELS["gru-1-embed"]), tmp_path / "out"
    paths = r"/home/secret/tea.txt,C:\secret\cup.txt"  # of any system
    config = dataclasses.replace(
        trained.config,
        data=DataConfig(path=paths),
        train=TrainConfig(max_steps=1, init_from="/home/secret/run"),
    )
    source = {"kind": "charjax", "path": "/home/secret/run", "sha256": "00"}
    meta = {"corpus": {"name": paths}, "source": source}
    export_model(dataclasses.replace(trained, config=config, meta=meta), out, format=format)
    for file in out.iterdir() if out.is_dir() else [out]:
        assert b"secret" not in file.read_bytes()
    if format == "numpy":
        assert b"tea.txt,cup.txt" in (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize("format", ["program", "onnx"])
def test_an_export_does_not_write_through_a_link(format, tmp_path):
    trained, mine = trained_like(MODELS["gru-1-embed"]), tmp_path / "mine"
    mine.write_text("mine")
    out = tmp_path / "out"
    if format == "program":
        out.mkdir()
        (out / "README.md").symlink_to(mine)
    else:
        out.symlink_to(mine)
    with pytest.raises(InputError, match="was not written by charjax export"):
        export_model(trained, out, format=format)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("format", ["numpy", "c"])
def test_an_export_below_a_file_is_refused(format, tmp_path):
    (tmp_path / "mine").write_text("mine")
    out = tmp_path / "mine" / "out"
    with pytest.raises(InputError, match=r"^--out=.*out: a folder above it is a file"):
        export_model(trained_like(MODELS["gru-1-embed"]), out, format=format)


def test_an_unknown_format_is_named(tmp_path):
    with pytest.raises(InputError, match=r"^--format=pdf: no such format; there are program, "):
        export_model(trained_like(MODELS["gru-1-embed"]), tmp_path / "out", format="pdf")


def test_the_keras_file_is_hdf5():
    h5py = pytest.importorskip("h5py")
    content = FORMATS["keras"].files(trained_like(MODELS["lstm-3-one_hot"]))["model.weights.h5"]
    with h5py.File(io.BytesIO(content)) as file:
        assert file["layers/lstm_2/cell/vars/1"].shape == (12, 48)
