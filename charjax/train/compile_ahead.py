"""Compilation ahead: evaluation and sampling are compiled while the first steps are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

import jax
import numpy as np

from charjax.config import Config
from charjax.data.dataset import Dataset
from charjax.inference.evaluate import max_eval_chars, score
from charjax.runtime import distributed, sharding
from charjax.train.metrics import figure_class
from charjax.train.samples import generate_samples
from charjax.types import PyTree

_logger = logging.getLogger(__name__)


class _CompiledError(Exception):
    """What was to be compiled has run once."""


def start(config: Config, params: PyTree, dataset: Dataset) -> Callable[[], None]:
    """Compiles a run's evaluation and sampling in a thread, where that takes seconds.

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
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    thread = threading.Thread(target=_try_compile, args=(config, like, dataset), daemon=True)
    thread.start()
    return thread.join


def compile_all(config: Config, like: PyTree, dataset: Dataset) -> None:
    """Compiles by evaluating and sampling a chunk of text with a model of zeros.

    Args:
      config: as for `start`.
      like: `jax.ShapeDtypeStruct`s of the parameters.
      dataset: as for `start`.
    """
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    params = sharding.shard(zeros, sharding.replicated(sharding.data_mesh(sharding.all_devices())))
    ids, chunks = dataset.splits.val.ids, 0

    def after_evaluating(done: int, total: int) -> None:
        raise _CompiledError

    def after_sampling() -> None:
        nonlocal chunks
        chunks += 1
        if chunks > 1:  # the first one is empty
            raise _CompiledError

    if ids.size > 1:
        with suppress(_CompiledError):
            score(
                config.model,
                params,
                ids,
                boundary_id=dataset.vocab.boundary_id,
                max_chars=max_eval_chars(config.data),
                progress=after_evaluating,
            )
    with suppress(_CompiledError):
        generate_samples(config, params, dataset.vocab, after_sampling)


def _try_compile(config: Config, like: PyTree, dataset: Dataset) -> None:
    try:
        compile_all(config, like, dataset)
        figure_class()  # imports what draws the curves when the run ends
    except Exception as error:  # such as too little memory: the run itself reports what fails
        _logger.debug(f"not compiled ahead: {error}")
