"""The facts about a config or a trained model that `charjax info` prints.

Those of a trained model need no JAX.
"""

from __future__ import annotations

import math
from typing import Any

from charjax.config import Config
from charjax.data.dataset import load_dataset
from charjax.inference.load import TrainedModel, kept_characters, load_initial
from charjax.model.shapes import param_shapes


def config_info(config: Config) -> dict[str, Any]:
    """The sizes of the model and the dataset that a config describes, as JSON values.

    Raises:
      InputError, HostError: the text or the initial model cannot be loaded; see `load_dataset`
        and `load_initial`.
    """
    from charjax.runtime.dtypes import resolve_dtype

    config = resolve_dtype(config)
    initial = load_initial(config.train).vocab if config.train.init_from else None
    dataset = load_dataset(config, known=kept_characters(config.train, initial))
    return _model(config, len(dataset.vocab)) | {
        "corpus": dataset.corpus.name,
        "chars": dataset.corpus.chars,
        "sha256": dataset.corpus.sha256,
        "documents": dataset.corpus.num_documents,
        "train_chars": len(dataset.splits.train.ids),
        "val_chars": len(dataset.splits.val.ids),
        "test_chars": len(dataset.splits.test.ids),
        "unused_chars": dataset.batches.unused_chars,
        "windows": dataset.batches.num_sequences,
        "steps_per_epoch": dataset.batches.steps_per_epoch,
    }


def trained_info(trained: TrainedModel) -> dict[str, Any]:
    """The size and training state of a trained model, as JSON values."""
    run = trained.run
    return _model(run.config, len(run.vocab)) | {
        "corpus": run.corpus.name,
        "sha256": run.corpus.sha256,
        "notice": run.corpus.notice,
        "step": trained.step,
        "val_loss": trained.val_loss,
        "elapsed_s": trained.elapsed_s,
        "versions": run.platform.versions,
        "device": run.platform.device,
        "recurrence": run.recurrence and run.recurrence._asdict(),
    }


def _model(config: Config, vocab_size: int) -> dict[str, Any]:
    shapes = param_shapes(config.model, vocab_size).values()
    sizes = {"parameters": sum(map(math.prod, shapes)), "vocab_size": vocab_size}
    shown = ("cell", "layers", "hidden", "embed", "dtype")
    return sizes | {name: getattr(config.model, name) for name in shown}
