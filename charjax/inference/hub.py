"""Reads a model in the layout of a model hub, as `charjax export --format=hub` writes it.

`config.json` says what the model is and has the digests of the other two files: the weights in
`model.safetensors` and the vocabulary. Nothing in the folder is executed or unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from charjax import schema
from charjax.checkpoint.meta import RunMeta
from charjax.errors import CheckpointError, HostError, InputError
from charjax.model.shapes import param_shapes
from charjax.runtime.files import read_linked
from charjax.runtime.safetensors import (
    Arrays,
    check_shapes,
    float32_weights,
    parse_safetensors,
)
from charjax.workdir import HUB_FILES

FORMAT = 1
MAX_JSON_BYTES = 16 * 2**20


class HubConfig(NamedTuple):
    """What `config.json` says of the model.

    Attributes:
      format: of these fields.
      run: the metadata of its checkpoint but for the vocabulary, the logs and the progress.
      step: at which it was saved.
      val_loss: nats per character at that step; None where it was not evaluated.
      elapsed_s: seconds of training.
      sha256: of the other files, by name.
    """

    format: int
    run: Mapping[str, Any]
    step: int
    val_loss: float | None
    elapsed_s: float
    sha256: Mapping[str, str]


class HubModel(NamedTuple):
    """A model that was read from such a folder.

    Attributes:
      run: what identifies it.
      arrays: float32, by path as `charjax.model.shapes.param_shapes` has it.
      config: what else is known of it.
    """

    run: RunMeta
    arrays: Arrays
    config: HubConfig


def read_hub(folder: Path) -> HubModel:
    """The model in a folder.

    Args:
      folder: of the model.

    Raises:
      CheckpointError: a file is missing, differs from its digest, or does not fit the others.
      HostError: a file cannot be read.
    """
    try:
        return _read(folder)
    except InputError as error:
        raise CheckpointError(
            f"{folder}: not a model that can be used: {error}; export or fetch it again"
        ) from None
    except OSError as error:
        raise HostError(f"{error.filename or folder}: {error.strerror or error}") from error


def _read(folder: Path) -> HubModel:
    """`read_hub`, with other errors."""
    values = json_object(read_linked(folder / "config.json", MAX_JSON_BYTES), "config.json")
    fields = {name: values[name] for name in HubConfig._fields if name in values}
    config = schema.parse(HubConfig, fields, "config.json")
    if config.format != FORMAT:
        raise InputError(f"config.json: format={config.format}, this version reads {FORMAT}")
    content = {name: read_linked(folder / name) for name in HUB_FILES[1:]}
    for name, data in content.items():
        if hashlib.sha256(data).hexdigest() != config.sha256.get(name):
            raise InputError(f"{name} differs from its digest in config.json")
    vocabulary = json_object(content["vocabulary.json"], "vocabulary.json")
    known = {name: value for name, value in vocabulary.items() if name != "start"}
    run = RunMeta.from_json(dict(config.run) | {"vocabulary": known})
    arrays, _ = parse_safetensors(content["model.safetensors"])
    arrays = {name.replace(".", "/"): array for name, array in arrays.items()}
    check_shapes(arrays, param_shapes(run.config.model, len(run.vocab)))
    return HubModel(run, float32_weights(arrays), config)


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object in a file's content; for any other content, an InputError with its name."""
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{name}: not JSON") from None
    if not isinstance(values, dict):
        raise InputError(f"{name}: not a JSON object")
    return values
