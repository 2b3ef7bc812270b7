"""Small models for the tests of exports, and what charjax computes with them."""

from __future__ import annotations

import importlib.util
import string
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.checkpoint.meta import CorpusMeta
from charjax.config import Config, ModelConfig, TrainConfig
from charjax.data.reading.rules import ReadingRules
from charjax.data.vocab import Vocab
from charjax.export.quantized import quantize_model
from charjax.inference.load import TrainedModel
from charjax.inference.options import Sampling
from charjax.inference.texts.sampler import TextSampler, write_texts
from charjax.model.carry import initial_carry
from charjax.model.network import init_params
from charjax.runtime.keys import Stream, stream_key
from tests.inference.scripted import changed, run_of
from tests.model.small import apply

TEXT = "the cat sat on a mat.\nIt saw some tea, and drank it up: é€😀"
CHARACTERS = "\n !$&',-.3:;?" + string.ascii_letters  # those of tiny Shakespeare
MODELS = {
    f"{cell}-{layers}-{'embed' if embed else 'one_hot'}": ModelConfig(
        cell=cell, hidden=12, embed=embed, layers=layers
    )
    for cell in ("gru", "lstm", "rnn")
    for layers, embed in ((1, 6), (3, 0))
}
SAMPLES = ((0, 1.0), (2**32 - 1, 0.7), (5, 0.0))  # seed, temperature
HOT = (7, 1e39)  # beyond float32, as its products with Gumbel noise are from 1e37 on
SAMPLING = ("temperature", "seed", "top_k", "top_p", "min_p")
any_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def trained_like(
    model: ModelConfig, *, unit: str = "codepoint", unk: bool = False, text: str = TEXT
) -> TrainedModel:
    """A random model, far from uniform, without a zero bias.

    Its recurrent kernels contract, so that rounding does not grow along a text. Drawn by numpy,
    which compiles nothing.
    """
    if unit == "byte":
        text = text.encode().decode("latin-1")
    vocab = Vocab.from_text(text, order="sorted", unit=unit, unk=unk)
    rng, key = np.random.default_rng(2), stream_key(1, Stream.INIT)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        names = [entry.key for entry in path]
        std = 0.02
        if len(leaf.shape) == 2:
            std = 0.5 if "recurrent" in names else 6.0 if "output_kernel" in names else 2.5
            std /= np.sqrt(leaf.shape[0])
        return rng.normal(0, std, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(lambda: init_params(model, len(vocab), key))
    params = jax.tree.map_with_path(draw, shapes)
    config = Config(model=model, train=TrainConfig(max_steps=1))
    run = run_of(config, vocab, corpus=CorpusMeta("tea", "00", len(text), ""))
    return TrainedModel(run, params, 7, None, 0.0)


def with_boundary(trained: TrainedModel) -> TrainedModel:
    """The same model, whose last token is the end of a document."""
    characters = trained.vocab.characters[:-1]
    vocab = replace(trained.vocab, characters=characters, boundary=True)
    return changed(trained, vocab=vocab)


def lowercased(trained: TrainedModel) -> TrainedModel:
    """The same model, whose text was read in lower case and with \n as line ends."""
    data = replace(trained.config.data, lowercase=True, newlines="unix")
    config, reading = replace(trained.config, data=data), ReadingRules.from_config(data)
    return changed(trained, config=config, reading=reading)


def tokens_of(trained: TrainedModel, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, len(trained.vocab), shape)


def network_logits(trained: TrainedModel, tokens: np.ndarray) -> np.ndarray:
    params = jax.tree.map(jnp.asarray, trained.params)
    carry = initial_carry(trained.config.model, len(tokens))
    return np.asarray(apply(trained.config.model, params, jnp.asarray(tokens, jnp.int32), carry)[0])


def module_of(path: Path):
    spec = importlib.util.spec_from_file_location(f"exported_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sampled(trained: TrainedModel, **options) -> bytes:
    """What `charjax sample` writes."""
    chosen = {k: options[k] for k in SAMPLING if k in options}
    sampler = TextSampler(trained, Sampling(**chosen))
    pieces = write_texts(
        sampler,
        sampler.encode(options["prompt"], "error"),
        num_chars=options["num_chars"],
        num_samples=options.get("num_samples", 1),
        separator="\0",
    )
    return "".join(pieces).encode()


def dequantize_model(trained: TrainedModel) -> TrainedModel:
    """The float32 model with the weights `integers * scales`, which samples the exports' texts."""
    model = quantize_model(trained)
    arrays = {name: k.integers * k.scales for name, k in model.kernels.items()} | model.biases
    params: dict = {}
    for name, array in arrays.items():
        *path, leaf = name.split(".")
        node = params
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = array
    config = replace(trained.config, model=model.config)
    return replace(changed(trained, config=config), params=params)
