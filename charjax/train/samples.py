"""The live samples of a run: how it writes by now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from charjax.config import Config
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.inference.sampler import Sampler
from charjax.inference.sampling import Sampling
from charjax.inference.texts import decode_groups, encode_prompt
from charjax.runtime.sharding import local_copy
from charjax.types import PyTree
from charjax.workdir import append


def check_samples(config: Config, vocab: Vocab) -> None:
    """Raises InputError where the samples' prompt has characters that the vocabulary lacks."""
    if not config.sample.num_chars:
        return
    try:
        encode_prompt(vocab, config.sample.prompt)
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
    show: Callable[[str], None],
) -> None:
    """Adds one text a temperature to a file, and shows the last.

    Args:
      config: the run.
      params: its parameters at this step, on any devices.
      vocab: its symbols.
      step: for the title of each text.
      file: `samples.txt`.
      show: is given the last text with its title; not called where none is wanted.

    Raises:
      HostError: the disk refused.
    """
    wanted, shown = config.sample, ""
    if not wanted.num_chars:
        return
    # A text is written on one device.
    sampler = Sampler(config.model, local_copy(params), masked=vocab.unk_id)
    prompt = encode_prompt(vocab, wanted.prompt)
    for temperature in wanted.temperatures:
        sampling = Sampling(temperature=temperature, seed=config.seed)
        groups = sampler(prompt, num_chars=wanted.num_chars, num_samples=1, sampling=sampling)
        (text,) = decode_groups(vocab, groups)
        title = f"=== step {step}, temperature {temperature:g} ==="
        shown = f"{title}\n{wanted.prompt}{text}\n"
        append(file, f"{shown}\n")
    if shown:
        show(shown)
