"""Ahead-of-time compilation: evaluation and sampling are compiled while the first step is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import numpy as np

from charjax.config import Config
from charjax.data.dataset import Dataset
from charjax.inference.scoring.evaluate import validate
from charjax.runtime import distributed, sharding
from charjax.train.metrics import figure_class
from charjax.train.samples import generate_samples
from charjax.types import PyTree

_logger = logging.getLogger(__name__)


class _CompiledError(Exception):
    """What was to be compiled has run once."""


def start(config: Config, params: PyTree, dataset: Dataset) -> Callable[[], None]:
    """Compiles a run's evaluation and sampling in threads, where that takes seconds.

    On a CPU it would take cores from the compilation of the step. Several processes could enter
    collectives in different orders.

    Args:
      config: of the run, with dtype and recurrence resolved.
      params: of a `CharRNN`; only shapes and dtypes are read.
      dataset: of the run.

    Returns:
      A function that waits until all is compiled.
    """
    if jax.default_backend() == "cpu" or distributed.is_multiprocess():
        return lambda: None
    arguments = config, zeros_like(params), dataset
    tasks = [
        partial(evaluate_chunk, *arguments),
        partial(sample_chunk, *arguments),
        figure_class,  # imports what draws the curves when the run ends
    ]
    threads = [threading.Thread(target=_try, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()

    def wait() -> None:
        for thread in threads:
            thread.join()

    return wait


def zeros_like(params: PyTree) -> PyTree:
    """Parameters of the same shapes and dtypes, a copy on every device."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    return sharding.shard(zeros, sharding.replicated(sharding.data_mesh()))


def evaluate_chunk(config: Config, params: PyTree, dataset: Dataset) -> None:
    """Evaluates a chunk of the validation text, if there is one."""

    def after_chunk(done: int, total: int) -> None:
        raise _CompiledError

    with suppress(_CompiledError):
        validate(config, params, dataset, after_chunk)


def sample_chunk(config: Config, params: PyTree, dataset: Dataset) -> None:
    """Samples a chunk of text."""
    chunks = 0

    def after_chunk() -> None:
        nonlocal chunks
        chunks += 1
        if chunks > 1:  # the first one is empty
            raise _CompiledError

    with suppress(_CompiledError):
        generate_samples(config, params, dataset.vocab, after_chunk)


def _try(task: Callable[[], Any]) -> None:
    try:
        task()
    except Exception as error:  # such as too little memory: the run itself reports what fails
        _logger.debug(f"not compiled ahead: {error}")
