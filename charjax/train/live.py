"""The live samples of a run: how it writes by now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from charjax.config import Config
from charjax.data.vocab import Vocab
from charjax.devices import one_copy
from charjax.folder import append
from charjax.generate.choice import Sampling
from charjax.generate.sample import sample_texts
from charjax.types import PyTree


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
    params = one_copy(params)  # a text is written on one device
    for temperature in wanted.temperatures if wanted.num_chars else ():
        (text,) = sample_texts(
            config.model,
            params,
            vocab,
            wanted.prompt,
            num_chars=wanted.num_chars,
            num_samples=1,
            sampling=Sampling(temperature=temperature, seed=config.seed),
        )
        title = f"=== step {step}, temperature {temperature:g} ==="
        shown = f"{title}\n{wanted.prompt}{text}\n"
        append(file, f"{shown}\n")
    if shown:
        show(shown)
