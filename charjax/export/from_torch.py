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
from charjax.export.foreign import (
    ForeignLayer,
    ForeignModel,
    as_float32,
    cell_of,
    check_all_used,
    embedding_and_head,
    in_order,
)
from charjax.export.weights import Arrays
from charjax.runtime.safetensors import read_safetensors

# weight_ih_l0 of nn.GRU, nn.LSTM and nn.RNN; weight_ih of nn.GRUCell and the like.
_RECURRENT = re.compile(r"(?P<module>.*?)(?:weight|bias)_(?:ih|hh|hr)(?P<layer>_l\d+)?(_reverse)?")
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_STARTS_OF_PICKLES = (b"PK\x03\x04", b"\x80\x02\x8a\n")  # a ZIP archive; before torch 1.6
_STATE_DICTS = ("state_dict", "model_state_dict", "model")  # keys of checkpoints that hold one


def read_torch(file: Path) -> ForeignModel:
    """The model in a file.

    torch's order of gates is charjax's: reset, update, candidate for GRU; input, forget,
    candidate, output for LSTM. torch's kernels are transposed.

    Raises:
      InputError: the file is damaged, or charjax has no such model.
      OSError: it cannot be read.
    """
    arrays = _read_pickle(file) if _is_pickle(file) else _read_safetensors(file)
    arrays = {name: as_float32(name, array) for name, array in arrays.items()}
    layers = _layers(arrays)
    embedding, head = _matrices(arrays, layers[0].kernel.shape[0])
    bias = head.removesuffix("weight") + "bias"
    used = {name for name in arrays if _RECURRENT.fullmatch(name)} | {head, bias}
    used |= {embedding} if embedding else set()
    check_all_used(arrays, used, "the state dict has")
    vocab = arrays[head].shape[0]
    return ForeignModel(
        cell=cell_of(layers[0].recurrent_kernel, "the first layer"),
        layers=tuple(layers),
        embedding=arrays[embedding] if embedding else None,
        output_kernel=arrays[head].T,
        output_bias=arrays.get(bias, np.zeros(vocab, np.float32)),
    )


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
            f"{file}: only torch reads this format; run: pip install torch, or save the weights "
            "with safetensors.torch.save_model"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise InputError(
            f"{file}: not a state dict that torch reads without running code in the file "
            f"({type(error).__name__}); save model.state_dict()"
        ) from None
    return {name: _to_numpy(name, t, torch) for name, t in _tensors(found, file).items()}


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


def _tensors(found: Any, file: Path) -> dict[str, Any]:
    nested = [found] + [found[name] for name in _STATE_DICTS if _is_mapping(found, name)]
    for values in nested:
        items = values.items() if isinstance(values, Mapping) else ()
        if items and all(isinstance(k, str) and hasattr(v, "detach") for k, v in items):
            return dict(items)
    raise InputError(
        f"{file}: holds no state dict, alone or under {', '.join(_STATE_DICTS)}; save "
        "model.state_dict()"
    )


def _is_mapping(found: Any, name: str) -> bool:
    return isinstance(found, Mapping) and isinstance(found.get(name), Mapping)


def _layers(arrays: Arrays) -> list[ForeignLayer]:
    """The recurrent layers, in the order of their modules' names and of their numbers."""
    found = [match for match in map(_RECURRENT.fullmatch, arrays) if match]
    if not found:
        raise InputError("no GRU, LSTM or RNN: the state dict has no weight_ih_l0 and weight_hh_l0")
    for match in found:
        if match[3]:
            raise InputError(f"{match[0]}: a bidirectional layer reads the text it is to predict")
        if "_hr" in match[0]:
            raise InputError(f"{match[0]}: charjax has no LSTM with proj_size")
    names = {
        f"{match['module']}{match['layer'] or ''}": (match["module"], match["layer"] or "")
        for match in found
    }
    return [_layer(arrays, *names[name]) for name in in_order(names)]


def _layer(arrays: Arrays, module: str, number: str) -> ForeignLayer:
    def part(name: str) -> np.ndarray:
        path = f"{module}{name}{number}"
        if path not in arrays:
            raise InputError(f"{path} is missing")
        if arrays[path].ndim != (2 if name.startswith("weight") else 1):
            raise InputError(f"{path} has the shape {[*arrays[path].shape]}")
        return arrays[path]

    kernel, recurrent = part("weight_ih").T, part("weight_hh").T
    biases = [np.zeros(recurrent.shape[1], np.float32)] * 2
    if {f"{module}bias_ih{number}", f"{module}bias_hh{number}"} & arrays.keys():
        biases = [part("bias_ih"), part("bias_hh")]
    return ForeignLayer(kernel, recurrent, *biases)


def _matrices(arrays: Arrays, features: int) -> tuple[str | None, str]:
    """The names of the embedding (None: one-hot input) and of the projection to the logits."""
    has_bias = {
        name: name.removesuffix("weight") + "bias" in arrays
        for name, array in arrays.items()
        if name.endswith("weight") and array.ndim == 2 and not _RECURRENT.fullmatch(name)
    }
    embedding, head = embedding_and_head(has_bias)
    vocab, hidden = arrays[head].shape
    is_tied = embedding is None and hidden == features != vocab
    return (head if is_tied else embedding), head
