"""The exported generator: a program without charjax that writes the sampler's characters."""

from __future__ import annotations

import dataclasses
import json
import runpy
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from charjax.config import ModelConfig
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.export.api import export_model
from charjax.export.program import PLATFORMS, export_generator, start_rows
from charjax.export.weights import named_weights, weights_file
from charjax.inference.load import TrainedModel
from charjax.inference.options import Sampling
from charjax.inference.texts.sampler import sample_texts
from charjax.runtime.keys import Stream, stream_key
from tests.export.runners import EXAMPLE, run_example
from tests.export.tiny import HOT, network_logits, sampled, trained_like, with_boundary

GRU = ModelConfig(cell="gru", hidden=16, embed=8)
MODELS = [
    GRU,
    ModelConfig(cell="lstm", hidden=16, embed=0, layers=2),
    ModelConfig(cell="rnn", hidden=8, embed=4, dtype="bfloat16"),
]


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


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: model.cell)
def exported(request):
    """A model and the function that its program is."""
    trained = trained_like(request.param)
    program = reloaded(trained)
    assert program.platforms == PLATFORMS
    return trained, jax.jit(program.call)


def test_the_reloaded_program_writes_what_the_sampler_writes(exported):
    trained, call = exported
    ids = trained.vocab.encode("the c")
    for temperature, batch in ((0.0, 1), (0.7, 8), (1.5, 8)):
        written = generate(call, trained, ids, 40, batch=batch, seed=3, temp=temperature)
        texts = sample_texts(
            trained.config.model,
            trained.params,
            trained.vocab,
            "the c",
            num_chars=40,
            num_samples=batch,
            sampling=Sampling(temperature=temperature, seed=3),
        )
        assert [trained.vocab.decode(row) for row in written] == list(texts)


def test_greedy_steps_follow_the_network(exported):
    """Against the training forward, not the sampler: the likeliest character, each time."""
    trained, call = exported
    written = generate(call, trained, [2], 12, batch=8, seed=0, temp=0.0)
    read = np.concatenate([np.full((8, 1), 2, np.int32), written[:, :-1]], axis=1)
    np.testing.assert_array_equal(written, np.argmax(network_logits(trained, read), axis=-1))


def test_unk_is_never_written():
    trained = trained_like(GRU, unk=True)
    bias = trained.params["output_bias"].copy()
    bias[trained.vocab.unk_id] = 1e6
    trained = dataclasses.replace(trained, params={**trained.params, "output_bias": bias})
    call = jax.jit(reloaded(trained).call)
    written = generate(call, trained, [0], 20, batch=8, seed=0, temp=2.0)
    assert trained.vocab.unk_id not in written


def test_weights_survive_their_file():
    """Also those whose memory is not in the order of their items."""
    load = pytest.importorskip("safetensors.numpy").load

    trained = trained_like(MODELS[1])
    transposed = trained.params["output_kernel"].T.copy().T
    trained = dataclasses.replace(trained, params={**trained.params, "output_kernel": transposed})
    loaded, named = load(weights_file(trained)), named_weights(trained.params)
    assert loaded.keys() == named.keys()
    assert "layer_1.recurrent.kernel" in loaded
    for name, weight in named.items():
        np.testing.assert_array_equal(loaded[name], weight)


def test_the_example_writes_the_same_bytes_in_a_process_without_charjax(tmp_path, caplog):
    caplog.set_level("INFO", "charjax")
    trained = trained_like(GRU)
    export_model(trained, tmp_path / "out", format="program")
    assert len(caplog.messages) == 1
    for seed, temperature in ((5, 0.9), HOT):
        options = {"prompt": "the cat", "num_chars": 60, "temperature": temperature, "seed": seed}
        done = run_example(tmp_path / "out", **options)
        assert (done.returncode, done.stdout, done.stderr) == (0, sampled(trained, **options), b"")


def test_the_example_reads_and_writes_bytes(tmp_path, monkeypatch):
    """A model of bytes writes text, not its bytes as characters."""
    trained = trained_like(GRU, unit="byte", text="Une tasse de café, du thé")
    export_model(trained, tmp_path / "out", format="program")
    arguments = [str(EXAMPLE), str(tmp_path / "out"), "café", "20", "0", "0"]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    # Bytes that are no UTF-8 become U+FFFD in the command, and stay bytes in the example.
    text = done.stdout.decode("utf-8", "replace").encode()
    assert text == sampled(trained, prompt="café", num_chars=20, temperature=0.0)
    monkeypatch.setattr(sys, "argv", [*arguments[:2], "€", *arguments[3:]])
    with pytest.raises(SystemExit, match=r"^'\\xe2' is unknown$"):
        runpy.run_path(str(EXAMPLE))


def test_the_folder_explains_itself(tmp_path):
    trained, out = with_boundary(trained_like(GRU, unk=True)), tmp_path / "out"
    export_model(trained, out, format="program")
    files = {path.name for path in out.iterdir()}
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in files - {"README.md", "charjax-export.json"})
    vocabulary = json.loads((out / "vocabulary.json").read_text(encoding="utf-8"))
    assert vocabulary.pop("start") == trained.vocab.start
    assert Vocab.from_json(vocabulary) == trained.vocab
    assert f"; the document boundary, id {trained.vocab.boundary_id}, which is fed" in readme
    assert "; [UNK], the last id, which is never sampled" in readme
    with np.load(out / "start.npz") as rows:
        assert all(f"{name} float32 [batch, {rows[name].size}]" in readme for name in rows)


def test_a_missing_package_is_one_line_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(InputError, match=r"flatbuffers is not installed.*charjax\[export\]"):
        export_model(trained_like(GRU), tmp_path / "out", format="program")
    assert not (tmp_path / "out").exists()
