"""Export of a trained model, in one of the formats of `FORMATS`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from charjax.config import to_dict
from charjax.errors import InputError
from charjax.export import keras, onnx_graph, program, torch
from charjax.export.files import write_file, write_folder
from charjax.export.weights import named_weights, safetensors
from charjax.inference.load import TrainedModel

_logger = logging.getLogger(__name__)


class Format(NamedTuple):
    """A format of exports.

    Attributes:
      description: one line, for `charjax export --help`.
      files: trained model -> contents by name, for a folder; or the content of a single file.
    """

    description: str
    files: Callable[[TrainedModel], dict[str, bytes] | bytes]


def export_model(trained: TrainedModel, out: Path, *, format: str = "program") -> None:
    """Writes a model in one of the formats.

    Args:
      trained: the model.
      out: the folder or file; made where there is none.
      format: a name in `FORMATS`.

    Raises:
      InputError: there is no such format, a package that it needs is missing, or `out` holds
        files that no export wrote.
      HostError: the disk refused.
    """
    check_format(format)
    content = FORMATS[format].files(trained)
    if isinstance(content, bytes):
        write_file(out, content)
        size = len(content)
    else:
        write_folder(out, content)
        size = sum(map(len, content.values()))
    _logger.info("wrote %s: format %s, %s bytes", out, format, f"{size:,}")


def check_format(format: str) -> None:
    """Raises InputError for a name that is not in `FORMATS`."""
    if format not in FORMATS:
        raise InputError(f"--format={format}: no such format; there are {', '.join(FORMATS)}")


def _program(trained: TrainedModel) -> dict[str, bytes]:
    return program.program_files(trained) | _shared_files(trained, "weights.safetensors")


def _numpy(trained: TrainedModel) -> dict[str, bytes]:
    script = resources.files("charjax.export") / "templates" / "generate.py"
    return {"generate.py": script.read_bytes(), **_shared_files(trained, "model.safetensors")}


def _onnx(trained: TrainedModel) -> bytes:
    return onnx_graph.onnx_model(trained)


def _torch(trained: TrainedModel) -> dict[str, bytes]:
    return torch.torch_files(trained) | {"vocabulary.json": _vocabulary(trained)}


def _keras(trained: TrainedModel) -> dict[str, bytes]:
    return keras.keras_files(trained) | {"vocabulary.json": _vocabulary(trained)}


def _shared_files(trained: TrainedModel, weights: str) -> dict[str, bytes]:
    """The weights under charjax's names, and the vocabulary."""
    metadata = {"format": "charjax", "config": json.dumps(to_dict(trained.config))}
    arrays = {
        name: array.astype(np.float32) for name, array in named_weights(trained.params).items()
    }
    return {weights: safetensors(arrays, metadata), "vocabulary.json": _vocabulary(trained)}


def _vocabulary(trained: TrainedModel) -> bytes:
    return json.dumps(trained.vocab.to_json() | {"start": trained.vocab.start}).encode()


FORMATS = {
    "program": Format("one step of sampling as a jax.export program, any batch size", _program),
    "numpy": Format("a folder with generate.py, which needs numpy alone", _numpy),
    "onnx": Format("one ONNX file: tokens and state in, logits and state out", _onnx),
    "torch": Format("safetensors that a torch module loads by load_state_dict", _torch),
    "keras": Format("a .weights.h5 that a Keras 3 model loads", _keras),
}
