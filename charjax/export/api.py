"""Exports a trained model in one of the formats of `FORMATS`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from charjax.config import ModelConfig, to_dict
from charjax.errors import InputError
from charjax.export import c, html, hub, keras, onnx_graph, program, torch
from charjax.export.files import template, write_file, write_folder
from charjax.export.foreign import FOREIGN_CELLS
from charjax.export.weights import vocabulary_json, weights_file
from charjax.inference.load import TrainedModel
from charjax.runtime.paths import without_folders

# What every format can hold: `FOREIGN_CELLS`, and the fields of `ModelConfig` that either give the
# sizes or have no effect on a trained model.
_SIZES = ("cell", "hidden", "layers", "embed", "dtype")
_DROPOUTS = tuple(field for field in to_dict(ModelConfig()) if field.startswith("dropout"))
_TRAINING = (*_DROPOUTS, "init", "recurrence", "remat")

_logger = logging.getLogger(__name__)


def export_model(trained: TrainedModel, out: str | Path, *, format: str) -> None:
    """Writes a model in one of the formats.

    Paths of the text and of the first weights lose their folders, which may be private.

    Args:
      trained: the model.
      out: the folder or file to write.
      format: a name in `FORMATS`.

    Raises:
      InputError: there is no such format, it cannot hold the model, it needs a package that is not
        installed, or `out` has files that no export wrote.
      HostError: the disk is full or cannot be written to.
    """
    check_format(format)
    out = Path(out)
    parts = [] if format in ANY_MODEL else unusual_parts(trained)
    if parts:
        raise InputError(f"--format={format}: cannot hold {', '.join(parts)}; use --format=program")
    content = FORMATS[format](_without_folders(trained))
    if isinstance(content, bytes):
        write_file(out, content)
        size = len(content)
    else:
        write_folder(out, content)
        size = sum(map(len, content.values()))
    _logger.info("wrote %s: format %s, %s bytes", out, format, f"{size:,}")


def round_to_bfloat16(trained: TrainedModel) -> TrainedModel:
    """The model with every weight rounded to a bfloat16 value, but stored in float32."""
    bfloat16 = jnp.dtype("bfloat16")
    params = jax.tree.map(lambda p: p.astype(bfloat16).astype(np.float32), trained.params)
    return replace(trained, params=params)


def check_format(format: str) -> None:
    """Raises InputError for a name that is not in `FORMATS`."""
    if format not in FORMATS:
        raise InputError(f"--format={format}: no such format; there are {', '.join(FORMATS)}")


def unusual_parts(trained: TrainedModel) -> list[str]:
    """The fields of a model, `cell` among them, that not every format can hold."""
    default, given = to_dict(ModelConfig()), to_dict(trained.config.model)
    fields = [f for f in given if f not in (*_SIZES, *_TRAINING) and given[f] != default[f]]
    if given["cell"] not in FOREIGN_CELLS:
        fields.insert(0, "cell")
    return [f"model.{field}={given[field]}" for field in fields]


def _without_folders(trained: TrainedModel) -> TrainedModel:
    """The model with no folder in what it says of its text, its training and its first weights."""
    run, config = trained.run, trained.config
    config = replace(
        config,
        data=replace(config.data, path=without_folders(config.data.path)),
        train=replace(config.train, init_from=without_folders(config.train.init_from)),
    )
    corpus = replace(run.corpus, name=without_folders(run.corpus.name))
    source = run.source and replace(run.source, path=without_folders(run.source.path))
    recurrence = run.recurrence and run.recurrence._replace(reason="")  # of a compiler's message
    run = replace(run, config=config, corpus=corpus, source=source, recurrence=recurrence)
    return replace(trained, run=run)


def _numpy(trained: TrainedModel) -> dict[str, bytes]:
    return {
        "generate.py": template("generate.py").encode(),
        "model.safetensors": weights_file(trained),
        "vocabulary.json": vocabulary_json(trained.vocab).encode(),
    }


def _hub(trained: TrainedModel) -> dict[str, bytes]:
    files = hub.hub_files(trained)
    if parts := unusual_parts(trained):
        _logger.info("hub: without model.onnx, which cannot hold %s", ", ".join(parts))
        return files
    try:
        return files | {"model.onnx": onnx_graph.onnx_model(trained)}
    except InputError as error:
        _logger.info("hub: without model.onnx: %s", error)
        return files


# Name -> function of a trained model that returns the contents of a folder's files by name, or the
# content of a single file.
FORMATS: dict[str, Callable[[TrainedModel], dict[str, bytes] | bytes]] = {
    "program": program.program_files,
    "numpy": _numpy,
    "html": html.html_file,
    "c": c.c_file,
    "onnx": onnx_graph.onnx_model,
    "torch": torch.torch_files,
    "keras": keras.keras_files,
    "hub": _hub,
}
ANY_MODEL = ("program", "hub")  # the others hold models without `unusual_parts`
