"""Models with known probabilities, for tests."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np

from charjax.checkpoint.meta import CorpusMeta, Platform, RunMeta
from charjax.config import Config, DataConfig, ModelConfig
from charjax.data.corpus import load_corpus
from charjax.data.reading.rules import ReadingRules
from charjax.data.vocab import Vocab
from charjax.inference.load import TrainedModel
from charjax.inference.options import Controls, Sampling
from charjax.inference.texts.sampler import TextSampler, write_texts
from tests.model.small import array, like, param_shapes


def chain(logits):
    """(config, params) of a model whose logits after character a are `logits[a]`: a Markov chain.

    The hidden state is the one-hot of the last character: tanh(20) is 1 in float32.
    """
    size = len(logits)
    params = {
        "layer_0": {
            "kernel": 20 * np.eye(size),
            "bias": np.zeros(size),
            "recurrent": {"kernel": np.zeros((size, size))},
        },
        "output_kernel": np.asarray(logits),
        "output_bias": np.zeros(size),
    }
    return ModelConfig(cell="rnn", hidden=size, embed=0), jax.tree.map(array, params)


def memoryless(logits):
    """A model that always has these logits."""
    return chain(np.tile(np.asarray(logits, np.float32), (len(logits), 1)))


def cycle(size):
    """A model that is sure that a + 1 follows a, and 0 the last."""
    return chain(50 * np.roll(np.eye(size), 1, axis=1))


def random_model(vocab_size, **changes):
    """An untrained model, far from uniform."""
    config = replace(ModelConfig(cell="gru", hidden=8, embed=0), **changes)
    return config, like(param_shapes(config, vocab_size), 5)


def run_of(config, vocab, **changes):
    """The metadata of a run that was trained on an unknown text."""
    fields = {
        "config": config,
        "vocab": vocab,
        "corpus": CorpusMeta("a text", "00", 9, ""),
        "reading": ReadingRules.from_config(config.data),
        "parameters": 9,
        "platform": Platform({"jax": "0"}, "cpu", 1),
        "recurrence": None,
    }
    return RunMeta(**fields | changes)


def changed(model, **changes):
    """A `TrainedModel` with other fields of its run."""
    return replace(model, run=replace(model.run, **changes))


def trained(model, text, *, step=0, **changes):
    """A `TrainedModel` whose vocabulary is in the order of the text; `changes` are of its run."""
    vocab = Vocab.from_text(text, order="appearance", unit="codepoint", unk=False)
    config, params = model
    run = run_of(Config(model=config), vocab)
    return changed(TrainedModel(run, params, step, None, 0.0), **changes)


def trained_on(model, data: DataConfig, **changes):
    """A `TrainedModel` whose run was trained on this text."""
    corpus, config = load_corpus(data), Config(model=model[0], data=data)
    meta = CorpusMeta("t", corpus.sha256, corpus.chars, "")
    run = {"config": config, "corpus": meta, "reading": ReadingRules.from_config(data)}
    return trained(model, corpus.text, **run | changes)


def text_sampler(model, **options):
    """A `TextSampler` with these options of `Controls` and of `Sampling`."""
    fields = Controls.__dataclass_fields__
    controls = {name: options.pop(name) for name in list(options) if name in fields}
    return TextSampler(model, Sampling(**options), Controls(**controls))


def written(
    model, prompt="", *, num_chars=60, num_samples=1, unknown="error", show_prompt=True, **options
):
    """What `charjax sample` writes, in its pieces, with | between texts."""
    sampler = text_sampler(model, **options)
    pieces = write_texts(
        sampler,
        sampler.encode(prompt, unknown),
        num_chars=num_chars,
        num_samples=num_samples,
        separator="|",
        show_prompt=show_prompt,
    )
    return list(pieces)
