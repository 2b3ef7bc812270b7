"""Samples of a run: texts that the model generates between training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from charjax.config import Config
from charjax.data.new_text import prepare_prompt
from charjax.data.reading.rules import ReadingRules
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.inference.options import Sampling
from charjax.inference.sampling.rows import Sampled
from charjax.inference.sampling.sampler import Sampler
from charjax.inference.texts.end import TextEnd, decode_texts
from charjax.runtime.sharding import local_copy
from charjax.types import PyTree


def check_prompt(config: Config, vocab: Vocab) -> None:
    """Checks `sample.prompt`.

    Raises:
      InputError: it has characters outside the vocabulary.
    """
    if not config.sample.num_chars:
        return
    try:
        vocab.encode_prompt(_prompt(config, vocab))
    except InputError as error:
        what = str(error).rpartition("; ")[0]  # without the remedy
        prompt = config.sample.prompt
        raise InputError(f"config.sample.prompt={prompt!r}: {what}; choose another") from error


def generate_samples(
    config: Config, params: PyTree, vocab: Vocab, check_stop: Callable[[], None]
) -> list[tuple[float, str]]:
    """(temperature, prompt and continuation) for each of `sample.temperatures`.

    [] if `sample.num_chars` is 0.

    Args:
      config: of the run.
      params: on any devices.
      vocab: of the run.
      check_stop: called after every chunk of text; it may raise to stop.
    """
    samples: list[tuple[float, str]] = []
    if not config.sample.num_chars:
        return samples
    sampler = Sampler.for_vocab(config.model, local_copy(params), vocab)  # on one device

    def checked(chunks: Iterator[Sampled]) -> Iterator[Sampled]:
        for chunk in chunks:
            check_stop()
            yield chunk

    text_before, num_chars = _prompt(config, vocab), config.sample.num_chars
    prompt = vocab.encode_prompt(text_before)
    for temperature in config.sample.temperatures:
        sampling = Sampling(temperature=temperature, seed=config.seed)
        groups = sampler.run(prompt, num_chars=num_chars, num_samples=1, sampling=sampling)
        (text,) = decode_texts(map(checked, groups), partial(TextEnd, vocab, num_chars))
        samples.append((temperature, text_before + text.text))
    return samples


def _prompt(config: Config, vocab: Vocab) -> str:
    """`sample.prompt`, normalized as the run's text was."""
    return prepare_prompt(config.sample.prompt, ReadingRules.from_config(config.data), vocab)
