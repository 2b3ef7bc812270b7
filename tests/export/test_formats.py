"""Every exported form has the model's logits and, where it samples, its text (invariant 8)."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.config import Config, ModelConfig, TrainConfig
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.export.api import FORMATS, export_model
from charjax.export.weights import keras_weights, torch_weights
from charjax.inference.load import TrainedModel
from charjax.inference.sampling import Sampling
from charjax.inference.texts import write_texts
from charjax.model.network import CharRNN, init_params, initial_carry
from charjax.runtime.keys import Stream, stream_key

TEXT = "the cat sat on a mat.\nIt saw some tea, and drank it up: é€😀"
MODELS = {
    f"{cell}-{layers}-{'embed' if embed else 'one_hot'}": ModelConfig(
        cell=cell, hidden=12, embed=embed, layers=layers
    )
    for cell in ("gru", "lstm", "rnn")
    for layers, embed in ((1, 6), (3, 0))
}
any_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def trained_like(model: ModelConfig, *, unit: str = "codepoint", unk: bool = False) -> TrainedModel:
    """An untrained model, far from uniform, without a zero bias.

    Its recurrent kernels contract, so that rounding does not grow along a text.
    """
    text = TEXT.encode().decode("latin-1") if unit == "byte" else TEXT
    vocab = Vocab.from_text(text, order="sorted", unit=unit, unk=unk)
    params = init_params(model, len(vocab), stream_key(1, Stream.INIT))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(2)
    leaves = [np.asarray(p) * 0.8 + rng.normal(0, 0.02, p.shape).astype("f") for p in leaves]
    config = Config(model=model, train=TrainConfig(max_steps=1))
    params = jax.tree.unflatten(tree, leaves)
    params["output_kernel"] = params["output_kernel"] * 6
    return TrainedModel(config, vocab, params, 7, None, {"corpus": {"name": "tea"}})


def tokens_of(trained: TrainedModel, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, len(trained.vocab), shape)


def network_logits(trained: TrainedModel, tokens: np.ndarray) -> np.ndarray:
    network = CharRNN(trained.config.model, len(trained.vocab))
    params = jax.tree.map(jnp.asarray, trained.params)
    carry = initial_carry(trained.config.model, len(tokens))
    return np.asarray(network.run(params, jnp.asarray(tokens, jnp.int32), carry)[0])


def module_of(path: Path):
    spec = importlib.util.spec_from_file_location(f"exported_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# numpy


def sampled(trained: TrainedModel, **options) -> bytes:
    """What `charjax sample` writes."""
    sampling = Sampling(temperature=options["temperature"], seed=options["seed"])
    pieces = write_texts(
        trained,
        options["prompt"],
        num_chars=options["num_chars"],
        num_samples=1,
        separator="",
        sampling=sampling,
        unknown="error",
    )
    return "".join(pieces).encode()


def run_script(folder: Path, **options) -> subprocess.CompletedProcess:
    """generate.py in a process that can import numpy and nothing else of ours."""
    blocked = "; ".join(f"sys.modules['{name}'] = None" for name in ("jax", "charjax"))
    program = f"import sys, runpy; {blocked}; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-c", program, str(folder / "generate.py"), *flags]
    return subprocess.run(command, capture_output=True, check=False, cwd=folder)


SAMPLES = ((0, 1.0), (2**32 - 1, 0.7), (5, 0.0))  # seed, temperature


@any_model
def test_the_numpy_script_samples_the_same_text(model, tmp_path):
    trained = trained_like(model, unk=model.cell == "lstm")
    export_model(trained, tmp_path / "out", format="numpy")
    script, prompt = module_of(tmp_path / "out" / "generate.py"), trained.vocab.encode("the c")
    for seed, temperature in SAMPLES:
        options = {"prompt": "the c", "num_chars": 500, "seed": seed, "temperature": temperature}
        with np.errstate(over="ignore"):
            ids = list(script.generate(prompt, 500, temperature, seed))
        assert trained.vocab.decode(np.array([*prompt, *ids])).encode() == sampled(
            trained, **options
        )


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
    assert json.loads(facts["sampling"])["masked"] == [trained.vocab.unk_id]


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


def test_an_unknown_format_is_named(tmp_path):
    with pytest.raises(InputError, match=r"^--format=pdf: no such format; there are program, "):
        export_model(trained_like(MODELS["gru-1-embed"]), tmp_path / "out", format="pdf")


def test_the_keras_file_is_hdf5():
    h5py = pytest.importorskip("h5py")
    content = FORMATS["keras"].files(trained_like(MODELS["lstm-3-one_hot"]))["model.weights.h5"]
    with h5py.File(io.BytesIO(content)) as file:
        assert file["layers/lstm_2/cell/vars/1"].shape == (12, 48)
