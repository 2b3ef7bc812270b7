"""ONNX, torch, Keras, the program: logits of 1,000 characters, texts of 500 for three seeds.

torch and Keras are read by the module that the export writes; `pip install torch keras` for them.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from charjax.export.api import export_model
from charjax.export.program import export_generator
from charjax.inference.load import TrainedModel
from tests.export.test_program import generate
from tests.export.tiny import (
    SAMPLES,
    any_model,
    module_of,
    network_logits,
    sampled,
    tokens_of,
    trained_like,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("keras_on_jax")]

PROMPT, NUM_CHARS, NUM_LOGITS = "the c", 500, 1000


class Onnx:
    """onnxruntime, one token at a time."""

    def __init__(self, trained: TrainedModel, folder: Path, batch: int) -> None:
        runtime = pytest.importorskip("onnxruntime")
        export_model(trained, folder / "model.onnx", format="onnx")
        self.session = runtime.InferenceSession(folder / "model.onnx")
        zeros = np.zeros((1, batch, trained.config.model.hidden), np.float32)
        self.carry = {i.name: zeros for i in self.session.get_inputs() if i.name != "tokens"}

    def read(self, tokens: np.ndarray) -> np.ndarray:
        logits, *after = self.session.run(None, {"tokens": tokens[:, None], **self.carry})
        self.carry = dict(zip(self.carry, after, strict=True))
        return logits[:, 0]


class Torch:
    """The exported module, one token at a time."""

    def __init__(self, trained: TrainedModel, folder: Path, batch: int) -> None:
        self.torch = pytest.importorskip("torch")
        export_model(trained, folder / "torch", format="torch")
        self.module, self.carry = module_of(folder / "torch" / "model.py").load(), None

    def read(self, tokens: np.ndarray) -> np.ndarray:
        with self.torch.no_grad():
            logits, self.carry = self.module(self.torch.from_numpy(tokens[:, None]), self.carry)
        return logits[:, 0].numpy()


class Keras:
    """The exported model, which has no state: it reads all tokens again, each time."""

    def __init__(self, trained: TrainedModel, folder: Path, batch: int) -> None:
        pytest.importorskip("keras")
        export_model(trained, folder / "keras", format="keras")
        self.model = module_of(folder / "keras" / "model.py").load()
        self.tokens, self.length = np.zeros((batch, NUM_LOGITS), np.int32), 0

    def read(self, tokens: np.ndarray) -> np.ndarray:
        self.tokens[:, self.length] = tokens
        self.length += 1
        return self.model.predict_on_batch(self.tokens)[:, self.length - 1]


any_format = pytest.mark.parametrize("reader", [Onnx, Torch, Keras])


def expected_texts(trained: TrainedModel) -> list[bytes]:
    return [
        sampled(trained, prompt=PROMPT, num_chars=NUM_CHARS, seed=seed, temperature=temperature)
        for seed, temperature in SAMPLES
    ]


@any_model
@any_format
def test_a_format_has_charjaxs_logits(reader, model, tmp_path):
    trained = trained_like(model)
    tokens = tokens_of(trained, 1, NUM_LOGITS)
    want = network_logits(trained, tokens)[0]
    if reader is Keras:
        got = Keras(trained, tmp_path, 1).model.predict_on_batch(tokens)[0]
    else:
        exported = reader(trained, tmp_path, 1)
        got = np.stack([exported.read(tokens[:, t])[0] for t in range(NUM_LOGITS)])
    assert np.abs(got - want).max() <= 1e-5


@any_model
@any_format
def test_a_format_samples_charjaxs_text(reader, model, tmp_path):
    """By what `sampling.json` says: [UNK] masked, and the noise of generate.py."""
    trained = trained_like(model, unk=model.cell == "lstm")
    export_model(trained, tmp_path / "noise", format="numpy")
    noise, vocab = module_of(tmp_path / "noise" / "generate.py"), trained.vocab
    exported = reader(trained, tmp_path, len(SAMPLES))
    rows = [list(vocab.encode(PROMPT)) for _ in SAMPLES]
    for token in rows[0]:
        logits = exported.read(np.full(len(SAMPLES), token, np.int64))
    with np.errstate(over="ignore"):
        keys = [
            noise.fold_in(noise.fold_in((np.uint32(0), np.uint32(seed)), 2), 0)
            for seed, _ in SAMPLES
        ]
        for position in range(NUM_CHARS):
            for row, key, (_, temperature), row_logits in zip(
                rows, keys, SAMPLES, logits, strict=True
            ):
                gumbel = noise.gumbel(noise.fold_in(key, position), len(vocab))
                scores = row_logits + np.float32(temperature) * gumbel
                row.append(int(np.argmax(scores[: len(vocab) - vocab.unk])))
            logits = exported.read(np.array([row[-1] for row in rows]))
    texts = [vocab.decode(np.array(row)).encode() for row in rows]
    assert texts == expected_texts(trained)


@any_model
def test_the_program_samples_charjaxs_text(model):
    trained = trained_like(model, unk=model.cell == "lstm")
    ids = trained.vocab.encode(PROMPT)
    program = export_generator(model, trained.params, masked=trained.vocab.unk_id)
    call = jax.jit(jax.export.deserialize(bytearray(program)).call)
    for (seed, temp), want in zip(SAMPLES, expected_texts(trained), strict=True):
        options = {"batch": 1, "seed": seed, "temp": temp}
        (written,) = generate(call, trained, ids, NUM_CHARS, **options)
        assert trained.vocab.decode(np.concatenate([ids, written])).encode() == want
