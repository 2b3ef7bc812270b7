"""The samples of a run: text that the model generates while it is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from charjax.config import Config
from charjax.data.reading import ReadingRules, prepare_prompt
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.inference.sampler import Sampler
from charjax.inference.sampling import Sampling
from charjax.inference.texts import decode_groups, encode_prompt
from charjax.runtime.sharding import local_copy
from charjax.train.metrics import Log
from charjax.types import PyTree
from charjax.workdir import append


def check_prompt(config: Config, vocab: Vocab) -> None:
    """Checks the prompt of the samples.

    Raises:
      InputError: it has characters outside the vocabulary.
    """
    if not config.sample.num_chars:
        return
    try:
        encode_prompt(vocab, _prompt(config, vocab))
    except InputError as error:
        what = str(error).partition(";")[0]
        prompt = config.sample.prompt
        raise InputError(f"config.sample.prompt={prompt!r}: {what}; choose another") from error


def write_samples(
    config: Config,
    params: PyTree,
    vocab: Vocab,
    *,
    step: int,
    file: Path,
    log: Log,
    show: Callable[[str], None],
) -> None:
    """Appends one sample per temperature to a file, and shows the last one.

    Args:
      config: of the run.
      params: at this step, on any devices.
      vocab: of the run.
      step: for the title of each sample.
      file: `samples.txt`.
      log: gets the samples, too, for TensorBoard.
      show: is given the last sample with its title; not called without temperatures or length.

    Raises:
      HostError: the file cannot be written.
    """
    wanted, sample = config.sample, ""
    if not wanted.num_chars:
        return
    sampler = Sampler(config.model, local_copy(params), masked=vocab.unk_id)  # on one device
    text_before = _prompt(config, vocab)
    prompt = encode_prompt(vocab, text_before)
    for temperature in wanted.temperatures:
        sampling = Sampling(temperature=temperature, seed=config.seed)
        groups = sampler(prompt, num_chars=wanted.num_chars, num_samples=1, sampling=sampling)
        (text,) = decode_groups(vocab, groups)
        title = f"=== step {step}, temperature {temperature:g} ==="
        sample = f"{title}\n{text_before}{text}\n"
        append(file, f"{sample}\n")
        log.add_text(f"sample, temperature {temperature:g}", f"{wanted.prompt}{text}", step)
    if sample:
        show(sample)


def _prompt(config: Config, vocab: Vocab) -> str:
    """The prompt of the samples, prepared as the text was."""
    return prepare_prompt(config.sample.prompt, ReadingRules.from_config(config.data), vocab)
