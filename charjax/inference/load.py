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
from charjax.config import CELL_SIZES, Config, TrainConfig
from charjax.data.vocab import Vocab
from charjax.errors import CheckpointError, InputError
from charjax.inference.hub import read_hub
from charjax.model.shapes import param_shapes
from charjax.runtime.display import counted
from charjax.runtime.paths import expand_path
from charjax.workdir import Workdir

BUILTIN = Path(__file__).parents[1] / "builtin"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model with everything that sampling and scoring need.

    Attributes:
      run: what identifies its run.
      params: numpy arrays; the averaged weights where the run has them.
      step: at which it was saved.
      val_loss: nats per character at that step; None where it was not evaluated.
      elapsed_s: seconds of training.
    """

    run: RunMeta
    params: dict[str, Any]
    step: int
    val_loss: float | None
    elapsed_s: float

    @property
    def config(self) -> Config:
        """The config of its run."""
        return self.run.config

    @property
    def vocab(self) -> Vocab:
        """Its vocabulary."""
        return self.run.vocab

    @property
    def training(self) -> str:
        """In words, on what it was trained, for how long if that is known, and from what model."""
        steps = f" for {counted(self.step, 'step')}" if self.step else ""
        base = self.run.base_model
        start = f", from the weights of {base.path}" if base else ""
        return f"trained on {self.run.corpus.name}{steps}{start}"

    def with_model(self, **changes: Any) -> TrainedModel:
        """The same weights with other values of fields of `ModelConfig`."""
        config = replace(self.config, model=replace(self.config.model, **changes))
        return replace(self, run=replace(self.run, config=config))


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
    trained = _load_hub(BUILTIN, "best").with_model(recurrence="xla")
    _logger.info(
        "no --workdir is given: this is the built-in model, %s, trained on %s",
        trained.config.model.summary,
        trained.run.corpus.name,
    )
    return trained


def load_initial(config: TrainConfig) -> TrainedModel:
    """The model that `init_from` names, which must name one, with its best weights.

    Raises:
      InputError: there is no such model.
    """
    try:
        folder = Path(expand_path(config.init_from, "--init_from"))
        if folder == Path("builtin") and not folder.exists():
            folder = BUILTIN
        return load_trained(folder, which="best")
    except CheckpointError as error:
        raise InputError(f"--init_from={config.init_from}: {error}") from None


def kept_characters(config: TrainConfig, initial: Vocab | None) -> tuple[str, ...]:
    """The characters that the vocabulary of a run has from its initial model, if there is one."""
    return initial.characters if initial and config.init_characters == "keep" else ()


def _load_run(workdir: Path, which: Which) -> TrainedModel:
    directory = Workdir(workdir).checkpoints

    def wanted(record: Record) -> dict[str, Leaf]:
        run = CheckpointMeta.of(record, directory).run
        return {
            f"{_weights_key(run)}/{path}": Leaf(shape, "float32", "")  # its digest is ignored
            for path, shape in param_shapes(run.config.model, len(run.vocab)).items()
        }

    record, arrays = CheckpointReader(directory).read_arrays(wanted, which=which)
    meta = CheckpointMeta.of(record, directory)
    params = _nest(arrays)[_weights_key(meta.run)]
    return TrainedModel(meta.run, params, record.step, record.val_loss, meta.progress.elapsed_s)


def _load_hub(folder: Path, which: Which) -> TrainedModel:
    run, arrays, saved = read_hub(folder)
    check_which(which)
    if which not in ("best", "newest", saved.step):
        raise CheckpointError(f"{folder}: has no step {which}; its only one is {saved.step}")
    return TrainedModel(run, _nest(arrays), saved.step, saved.val_loss, saved.elapsed_s)


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
    return trained.with_model(dtype=dtype)
