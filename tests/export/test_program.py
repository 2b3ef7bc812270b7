"""The exported generator: a program without charjax that writes the sampler's characters."""

from __future__ import annotations

import ast
import dataclasses
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.config import Config, ModelConfig, TrainConfig
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.export.api import export_model
from charjax.export.program import (
    PLATFORMS,
    _characters,
    export_generator,
    make_generator,
    start_rows,
)
from charjax.export.weights import named_weights
from charjax.inference.load import TrainedModel
from charjax.inference.sampling import Sampling
from charjax.inference.texts import TextSampler, sample_texts, write_texts
from charjax.model.carry import initial_carry
from charjax.model.network import init_params
from charjax.runtime.keys import Stream, stream_key
from tests.environment import with_devices
from tests.model.small import apply

EXAMPLE = Path(__file__).parents[2] / "examples" / "generate_exported.py"
TEXT = "the cat sat on a mat.\nIt saw some tea, and drank it up."
MODELS = [
    ModelConfig(cell="gru", hidden=16, embed=8),
    ModelConfig(cell="lstm", hidden=16, embed=0, layers=2),
    ModelConfig(cell="rnn", hidden=8, embed=4, dtype="bfloat16"),
]
by_cell: dict[str, Any] = {"ids": lambda model: model.cell}


def trained_like(model: ModelConfig, *, unk: bool = False) -> TrainedModel:
    """An untrained model with weights large enough to be far from uniform."""
    config = Config(model=model, train=TrainConfig(max_steps=1))
    vocab = Vocab.from_text(TEXT, order="sorted", unit="codepoint", unk=unk)
    params = init_params(model, len(vocab), stream_key(1, Stream.INIT))
    # No bias is 0, so that none can be lost unseen.
    params = jax.tree.map(lambda p: np.asarray(p) * 3 + (0.1 if p.ndim == 1 else 0), params)
    return TrainedModel(config, vocab, params, 7, None, {"corpus": {"name": "tea"}})


def generate(
    call, trained: TrainedModel, ids, num_chars: int, *, batch: int, seed: int, temp: float
):
    """The generator's text, int32 [batch, num_chars], by the keys of invariant 1."""
    rows = start_rows(trained.config.model, trained.params).values()
    carry = tuple(np.tile(row, (batch, 1)) for row in rows)
    root = stream_key(seed, Stream.SAMPLE)
    sequence_keys = jax.vmap(jax.random.fold_in, (None, 0))(root, np.arange(batch))
    keys_at = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))
    tokens, written = np.full(batch, ids[0], np.int32), []
    for position in range(1 - len(ids), num_chars):
        keys = jax.random.key_data(keys_at(sequence_keys, max(position, 0)))
        tokens, carry = call(tokens, carry, keys, np.float32(temp))
        if position < 0:
            tokens = np.full(batch, ids[position], np.int32)
        else:
            written.append(np.asarray(tokens))
    return np.stack(written, axis=1)


def reloaded(trained: TrainedModel):
    program = export_generator(trained.config.model, trained.params, masked=trained.vocab.unk_id)
    return jax.export.deserialize(bytearray(program))


@pytest.mark.parametrize("model", MODELS, **by_cell)
def test_the_reloaded_program_writes_what_the_sampler_writes(model):
    trained = trained_like(model)
    call = jax.jit(reloaded(trained).call)
    ids = trained.vocab.encode("the c")
    for temperature in (0.0, 0.7, 1.5):
        written = generate(call, trained, ids, 40, batch=8, seed=3, temp=temperature)
        texts = sample_texts(
            model,
            trained.params,
            trained.vocab,
            "the c",
            num_chars=40,
            num_samples=8,
            sampling=Sampling(temperature=temperature, seed=3),
        )
        assert [trained.vocab.decode(row) for row in written] == list(texts)


def test_it_runs_on_every_platform_at_any_batch_size():
    trained = trained_like(MODELS[0])
    program = reloaded(trained)
    assert program.platforms == PLATFORMS
    for batch in (1, 3):
        written = generate(jax.jit(program.call), trained, [0], 2, batch=batch, seed=0, temp=1.0)
        assert written.shape == (batch, 2)


@pytest.mark.parametrize("model", MODELS, **by_cell)
def test_greedy_steps_follow_the_network(model):
    """Against the training forward, not the sampler: the likeliest character, each time."""
    trained = trained_like(model)
    call = jax.jit(make_generator(model, trained.params, masked=None))
    written = generate(call, trained, [2], 12, batch=2, seed=0, temp=0.0)
    read = np.concatenate([np.full((2, 1), 2, np.int32), written[:, :-1]], axis=1)
    params = jax.tree.map(jnp.asarray, trained.params)
    logits, _ = apply(model, params, jnp.asarray(read), initial_carry(model, 2))
    np.testing.assert_array_equal(written, np.argmax(logits, axis=-1))


def test_unk_is_never_written():
    trained = trained_like(MODELS[0], unk=True)
    bias = trained.params["output_bias"].copy()
    bias[trained.vocab.unk_id] = 1e6
    trained = dataclasses.replace(trained, params={**trained.params, "output_bias": bias})
    call = jax.jit(reloaded(trained).call)
    written = generate(call, trained, [0], 20, batch=8, seed=0, temp=2.0)
    assert trained.vocab.unk_id not in written


def test_weights_survive_their_file(tmp_path):
    """safetensors writes an array's memory in its order, transposed or not."""
    from safetensors.numpy import load_file

    trained = trained_like(MODELS[1])
    transposed = trained.params["output_kernel"].T.copy().T
    trained = dataclasses.replace(trained, params={**trained.params, "output_kernel": transposed})
    export_model(trained, tmp_path / "out")
    loaded = load_file(tmp_path / "out" / "weights.safetensors")
    named = named_weights(trained.params)
    assert loaded.keys() == named.keys()
    assert "layer_1.recurrent.kernel" in loaded
    for name, weight in named.items():
        np.testing.assert_array_equal(loaded[name], weight)
    np.testing.assert_array_equal(loaded["output_kernel"], trained.params["output_kernel"])


def test_the_example_writes_the_same_bytes_in_a_process_without_charjax(tmp_path, caplog):
    caplog.set_level("INFO", "charjax")
    trained = trained_like(MODELS[0])
    export_model(trained, tmp_path / "out")
    assert len(caplog.messages) == 1
    arguments = [str(tmp_path / "out"), "the cat", "60", "0.9", "5"]
    # Isolated, with an import of charjax made to fail.
    program = "import sys, runpy; sys.modules['charjax'] = None; runpy.run_path(sys.argv.pop(1))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(EXAMPLE), *arguments],
        env=with_devices(1),
        capture_output=True,
        check=True,
    )
    wanted = write_texts(
        TextSampler(trained, Sampling(temperature=0.9, seed=5)),
        "the cat",
        num_chars=60,
        num_samples=1,
        separator="",
        unknown="error",
    )
    assert done.stdout == "".join(wanted).encode()


def test_the_example_reads_and_writes_bytes(tmp_path, monkeypatch):
    """A model of bytes writes text, not its bytes as characters."""
    text = "Une tasse de caf\u00e9, du th\u00e9".encode().decode("latin-1")
    vocab = Vocab.from_text(text, order="sorted", unit="byte", unk=False)
    trained = dataclasses.replace(trained_like(MODELS[0]), vocab=vocab)
    params = init_params(MODELS[0], len(vocab), stream_key(1, Stream.INIT))
    trained = dataclasses.replace(trained, params=jax.tree.map(np.asarray, params))
    export_model(trained, tmp_path / "out")
    options = {"num_chars": 20, "num_samples": 1, "separator": "", "unknown": "error"}
    sampler = TextSampler(trained, Sampling(temperature=0.0))
    wanted = "".join(write_texts(sampler, "caf\u00e9", **options))
    arguments = [str(EXAMPLE), str(tmp_path / "out"), "caf\u00e9", "20", "0", "0"]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    # Bytes that are no UTF-8 become U+FFFD in the command, and stay bytes in the example.
    assert done.stdout.decode("utf-8", "replace") == wanted
    monkeypatch.setattr(sys, "argv", [*arguments[:2], "\u20ac", *arguments[3:]])
    with pytest.raises(SystemExit, match=r"^'\\xe2' is unknown$"):
        runpy.run_path(str(EXAMPLE))


def test_the_example_imports_jax_and_not_charjax():
    tree = ast.parse(EXAMPLE.read_text(encoding="utf-8"))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
        )
    }
    assert imported == {"json", "sys", "pathlib", "jax", "numpy"}


def test_the_folder_explains_itself(tmp_path):
    trained = trained_like(MODELS[0], unk=True)
    out = tmp_path / "out"
    export_model(trained, out)
    files = {path.name for path in out.iterdir()}
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in files - {"README.md", "charjax-export.json"})
    vocabulary = json.loads((out / "vocabulary.json").read_text(encoding="utf-8"))
    start = vocabulary.pop("start")
    assert Vocab.from_json(vocabulary) == trained.vocab
    assert start == trained.vocab.start
    with np.load(out / "start.npz") as rows:
        assert all(f"{name} float32 [batch, {rows[name].size}]" in readme for name in rows)


def test_the_folder_says_which_token_ends_a_document():
    vocab = Vocab.from_text("abc", order="sorted", unit="codepoint", unk=True, boundary=True)
    assert "; the document boundary, id 3, which is fed before the prompt" in _characters(vocab)
    assert _characters(vocab).endswith("; [UNK], the last id, which is never sampled")


@pytest.mark.parametrize("package", ["safetensors", "flatbuffers"])
def test_a_missing_package_is_one_line_and_leaves_no_file(package, tmp_path, monkeypatch):
    for name in (package, f"{package}.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"{package} is not installed.*charjax\[export\]"):
        export_model(trained_like(MODELS[0]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file; name a folder"):
        export_model(trained_like(MODELS[0]), tmp_path / "out")
