"""Reads the state dict of a torch module: safetensors, or .pt by the user's torch."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from charjax.errors import InputError
from charjax.export.conversion.arrays import (
    ConvertedModel,
    as_input_errors,
    model_of,
    split_layers,
)
from charjax.export.foreign import ForeignLayer
from charjax.export.torch import GATES
from charjax.inference.hub import MAX_JSON_BYTES, json_object
from charjax.runtime.files import read_linked
from charjax.runtime.safetensors import Arrays, float32_weights, read_safetensors
from charjax.schema import parse

# weight_ih_l0 of nn.GRU, nn.LSTM and nn.RNN; weight_ih of nn.GRUCell and the like.
_PART = re.compile(r"(?P<layer>.*?)(?P<part>(?:weight|bias)_(?:ih|hh))(?P<number>_l\d+)?")
_PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_STARTS_OF_PICKLES = (b"PK\x03\x04", b"\x80\x02\x8a\n")  # a ZIP archive; before torch 1.6
_STATE_DICTS = ("state_dict", "model_state_dict", "model")  # keys of checkpoints that hold one


def read_torch(file: Path) -> ConvertedModel:
    """The model in a file.

    Args:
      file: a state dict, or the index of one in shards, such as `model.safetensors.index.json`.

    Raises:
      InputError: the file is damaged, or charjax has no such model.
      OSError: it cannot be read.
    """
    arrays: Arrays = {}
    for part in weight_files(file):
        arrays |= _read_pickle(part) if _is_pickle(part) else _read_safetensors(part)
    if missing := sorted(_weight_map(file).keys() - arrays.keys()):
        raise InputError(f"names {missing[0][:80]}, which its shard does not have")
    layers, others = split_layers(float32_weights(arrays), _PART)
    if not layers:
        raise InputError("no GRU, LSTM or RNN: the state dict has no weight_ih_l0 and weight_hh_l0")
    return model_of(
        {name: _layer(name, parts) for name, parts in layers.items()},
        others,
        suffixes=("weight", "bias"),
        is_transposed=True,
        orders=GATES,
    )


def weight_files(file: Path) -> list[Path]:
    """The files that hold the weights: those that an index names, or the file itself.

    Raises:
      InputError: the index is damaged, or a file that it names is missing.
      OSError: it cannot be read.
    """
    names = sorted(set(_weight_map(file).values()))
    for name in names:
        if Path(name).name != name or not (file.parent / name).is_file():
            raise InputError(f"names {name[:80]!r}, which is no file beside it; put it there")
    return [file.parent / name for name in names] or [file]


def _weight_map(file: Path) -> Mapping[str, str]:
    """Array -> shard, in the index of a model in shards; empty for any other file."""
    if not file.name.endswith(".index.json"):
        return {}
    index = json_object(read_linked(file, MAX_JSON_BYTES), "the index")
    return parse(Mapping[str, str], index.get("weight_map"), "weight_map")


def _is_pickle(file: Path) -> bool:
    if file.suffix.lower() in _PICKLES:
        return True
    with file.open("rb") as opened:
        return opened.read(4) in _STARTS_OF_PICKLES


def _read_safetensors(file: Path) -> Arrays:
    """The arrays, with those that `safetensors.torch.save_model` left out as equal to others."""
    arrays, metadata = read_safetensors(file)
    same = {name: arrays[kept] for name, kept in metadata.items() if kept in arrays}
    return same | arrays


def _read_pickle(file: Path) -> Arrays:
    """The tensors of a file of `torch.save`; torch unpickles tensors only, no other objects."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise InputError(
            "only torch reads this format; run: pip install torch, or save the weights with "
            "safetensors.torch.save_model"
        ) from None
    what = "not a state dict that torch reads without running code in the file"
    with as_input_errors(f"{what}; save model.state_dict()"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.load(file, map_location="cpu", weights_only=True)
    return {name: _to_numpy(name, t, torch) for name, t in _tensors(found).items()}


def _to_numpy(name: str, tensor: Any, torch: Any) -> np.ndarray:
    """Converts a tensor to numpy; bfloat16 becomes float32."""
    tensor = tensor.detach()
    try:
        array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    except (TypeError, RuntimeError):
        raise InputError(
            f"{name[:80]}: is {tensor.dtype}, {tensor.layout}, on {tensor.device}; save dense "
            "tensors of float32"
        ) from None
    return array


def _tensors(found: Any) -> dict[str, Any]:
    places = [found, *map(found.get, _STATE_DICTS)] if isinstance(found, Mapping) else []
    for values in places:
        items = values.items() if isinstance(values, Mapping) else ()
        if items and all(isinstance(k, str) and hasattr(v, "detach") for k, v in items):
            return dict(items)
    raise InputError(
        f"holds no state dict, alone or under {', '.join(_STATE_DICTS)}; save model.state_dict()"
    )


def _layer(name: str, parts: Arrays) -> ForeignLayer:
    if parts.keys().isdisjoint(_PARTS[2:]):
        gates = next(iter(parts.values())).shape[:1]
        parts = parts | dict.fromkeys(_PARTS[2:], np.zeros(gates, np.float32))
    if missing := [part for part in _PARTS if part not in parts]:
        raise InputError(f"the layer {name[:80]} has no {' and no '.join(missing)}")
    weight_ih, weight_hh, *biases = (parts[part] for part in _PARTS)
    return ForeignLayer(weight_ih.T, weight_hh.T, *biases)
