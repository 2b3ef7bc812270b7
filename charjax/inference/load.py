"""A trained model, loaded from a run's checkpoints. Importing it imports no JAX."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from charjax.checkpoint.meta import CheckpointMeta, RunMeta
from charjax.checkpoint.reader import CheckpointReader, Which, check_which
from charjax.checkpoint.record import Leaf, Record
from charjax.config import CELL_SIZES, Config
from charjax.data.reading.rules import ReadingRules
from charjax.data.vocab import Vocab
from charjax.errors import CheckpointError, InputError
from charjax.inference.hub import read_hub
from charjax.model.shapes import param_shapes
from charjax.workdir import Workdir

BUILTIN = Path(__file__).parents[1] / "builtin"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
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
    params: dict[str, Any]
    step: int
    val_loss: float | None
    meta: dict[str, Any]

    @property
    def reading(self) -> ReadingRules:
        """How its text was read; of a run that did not record it, what its config says."""
        if "reading" in self.meta:
            return ReadingRules.from_json(self.meta["reading"])
        return ReadingRules.from_config(self.config.data)

    @property
    def is_converted(self) -> bool:
        """Whether it comes from a file of torch or Keras, which does not name its text."""
        source = self.meta.get("source")
        return source is not None and source["kind"] != "charjax"


def load_trained(workdir: str | Path, *, which: Which) -> TrainedModel:
    """The model of one verified checkpoint. Damaged ones are logged, one line each.

    Args:
      workdir: a run's folder, or one that `charjax export --format=hub` has written.
      which: "best", "newest" or a step. "best" is the newest where none was evaluated.

    Raises:
      InputError: `which` is none of its values.
      CheckpointError: the folder holds no usable checkpoint, or one of a version that this one
        cannot read.
    """
    folder = Path(workdir)
    if Workdir(folder).is_hub:
        return _load_hub(folder, which)
    return _load_run(folder, which)


def load_builtin() -> TrainedModel:
    """The model that comes with charjax, of `configs/builtin.py`.

    XLA runs its recurrence: a new installation has no compiled C loops, and need not wait for them.
    """
    trained = _load_hub(BUILTIN, "best")
    model = replace(trained.config.model, recurrence="xla")
    _logger.info(
        "no --workdir is given: this is the built-in model, %s %d x %d, trained on %s",
        model.cell,
        model.layers,
        model.hidden,
        trained.meta["corpus"]["name"],
    )
    return replace(trained, config=replace(trained.config, model=model))


def _load_run(workdir: Path, which: Which) -> TrainedModel:
    directory = Workdir(workdir).checkpoints

    def wanted(record: Record) -> dict[str, Leaf]:
        run = _read_run(directory, record)
        return {
            f"{_weights_key(run)}/{path}": Leaf(shape, "float32", "")  # its digest is ignored
            for path, shape in param_shapes(run.config.model, len(run.vocab)).items()
        }

    record, arrays = CheckpointReader(directory).read_arrays(wanted, which=which)
    run = _read_run(directory, record)
    params = _nest(arrays)[_weights_key(run)]
    return TrainedModel(run.config, run.vocab, params, record.step, record.val_loss, record.meta)


def _load_hub(folder: Path, which: Which) -> TrainedModel:
    run, arrays, saved = hub = read_hub(folder)
    check_which(which)
    if which not in ("best", "newest", saved.step):
        raise CheckpointError(f"{folder}: has no step {which}; its only one is {saved.step}")
    return TrainedModel(run.config, run.vocab, _nest(arrays), saved.step, saved.val_loss, hub.meta)


def _read_run(directory: Path, record: Record) -> RunMeta:
    return CheckpointMeta.of(record, directory).run


def _weights_key(run: RunMeta) -> str:
    """The part of a checkpoint that holds the weights to use: the average where there is one."""
    return "ema" if run.config.optim.averages else "params"


def _nest(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays by path as nested dicts, sorted by key."""
    tree: dict[str, Any] = {}
    for path, array in sorted(arrays.items()):
        *folders, name = map(unquote, path.split("/"))
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = array
    return tree


def with_dtype(trained: TrainedModel, dtype: str) -> TrainedModel:
    """The model with another dtype of its matmul operands: "float32", "bfloat16" or "int8".

    Its loss may differ a little; `charjax score --weights` measures by how much.

    Raises:
      InputError: int8, and a cell whose kernels are multiplied by numbers outside [-1, 1].
    """
    if dtype == "int8" and not CELL_SIZES[trained.config.model.cell].has_int8:
        raise InputError(
            f"--weights=int8: kernels of model.cell={trained.config.model.cell} are multiplied by "
            "numbers outside [-1, 1], which cannot be quantized; give --weights=bfloat16"
        )
    model = replace(trained.config.model, dtype=dtype)
    return replace(trained, config=replace(trained.config, model=model))
