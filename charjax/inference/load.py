"""A trained model, loaded from a run's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from charjax.checkpoint import Checkpoints, Record, Which
from charjax.checkpoint.meta import CheckpointMeta, RunMeta
from charjax.config import Config
from charjax.data.reading import ReadingRules
from charjax.data.vocab import Vocab
from charjax.model.network import init_params
from charjax.runtime.keys import Stream, stream_key
from charjax.types import PyTree
from charjax.workdir import Workdir


@dataclass(frozen=True)
class TrainedModel:
    """A model with everything that sampling and scoring need.

    Attributes:
      config: of its run.
      vocab: its vocabulary.
      params: numpy arrays; the averaged weights where the run has them.
      step: at which it was saved.
      val_loss: nats per character at that step; None where it was not evaluated.
      meta: the checkpoint's record of the run, JSON values.
    """

    config: Config
    vocab: Vocab
    params: PyTree
    step: int
    val_loss: float | None
    meta: dict[str, Any]

    @property
    def reading(self) -> ReadingRules:
        """How its text was read; of a run that did not record it, what its config says."""
        if "reading" in self.meta:
            return ReadingRules.from_json(self.meta["reading"])
        return ReadingRules.from_config(self.config.data)


def load_trained(workdir: Path, *, which: Which) -> TrainedModel:
    """The model of one verified checkpoint. Damaged ones are logged, one line each.

    Args:
      workdir: the run's folder.
      which: "best", "newest" or a step. "best" is the newest where none was evaluated.

    Raises:
      CheckpointError: the folder holds no usable checkpoint, or one of a version that this one
        cannot read.
    """
    directory = Workdir(workdir).checkpoints
    with Checkpoints(directory) as saved:
        run = _read_run(directory, saved.read_meta(which=which))
        key = stream_key(run.config.seed, Stream.INIT)
        shapes = jax.eval_shape(lambda: init_params(run.config.model, len(run.vocab), key))
        leaf = "ema" if run.config.optim.ema else "params"
        restored = saved.restore({leaf: shapes}, which=which)
    run = _read_run(directory, restored)  # a run may have saved another step meanwhile
    return TrainedModel(
        run.config, run.vocab, restored.state[leaf], restored.step, restored.val_loss, restored.meta
    )


def _read_run(directory: Path, record: Record) -> RunMeta:
    return CheckpointMeta.from_json(record.meta, f"{directory / str(record.step)}").run


def with_dtype(trained: TrainedModel, dtype: str) -> TrainedModel:
    """The model with another dtype of its matmul operands: "float32", "bfloat16" or "int8".

    Its loss may differ a little; `charjax score --weights` measures by how much.
    """
    model = replace(trained.config.model, dtype=dtype)
    return replace(trained, config=replace(trained.config, model=model))
