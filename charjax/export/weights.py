"""A model's weights by name, its vocabulary, and the files of both."""

from __future__ import annotations

import importlib
import json
from types import ModuleType

import jax
import numpy as np

from charjax.config import to_dict
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.inference.load import TrainedModel
from charjax.runtime.keys import Stream
from charjax.runtime.safetensors import Arrays, safetensors_file
from charjax.types import PyTree


def import_extra(package: str) -> ModuleType:
    """Imports a package that the extra `export` installs.

    Raises:
      InputError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = (error.name or package).partition(".")[0]
        raise InputError(
            f"export: the package {missing} is not installed; run: pip install 'charjax[export]'"
        ) from error


def named_weights(params: PyTree) -> Arrays:
    """The parameters by dotted name, such as `layer_0.recurrent.kernel`."""
    return {
        ".".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree.flatten_with_path(params)[0]
    }


def weights_file(trained: TrainedModel) -> bytes:
    """The parameters by `named_weights` in float32, with the config, as safetensors."""
    weights = named_weights(trained.params).items()
    metadata = {"format": "charjax", "config": json.dumps(to_dict(trained.config))}
    return safetensors_file({name: array.astype(np.float32) for name, array in weights}, metadata)


def token_files(vocab: Vocab) -> dict[str, bytes]:
    """`vocabulary.json` and `sampling.json`: the tokens, and how charjax samples them."""
    facts = {"vocabulary.json": vocabulary_json(vocab), "sampling.json": sampling_json(vocab)}
    return {name: content.encode() for name, content in facts.items()}


def vocabulary_json(vocab: Vocab) -> str:
    """The vocabulary, and the token to read where there is no prompt."""
    return json.dumps(vocab.to_json() | {"start": vocab.start})


def sampling_json(vocab: Vocab) -> str:
    """How charjax samples: the masked tokens, the token that ends a text, the noise."""
    facts = {
        "masked": [] if vocab.unk_id is None else [vocab.unk_id],
        "end": vocab.boundary_id,
        "noise": "argmax(logits + temperature * gumbel); the noise of character p of sample i "
        f"has the threefry key fold_in(fold_in(fold_in(key(seed), {int(Stream.SAMPLE)}), i), p)",
    }
    return json.dumps(facts)
