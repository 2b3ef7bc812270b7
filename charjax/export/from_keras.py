"""Reads the weights of a Keras 3 model, `.weights.h5` or `.keras`, without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
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
from charjax.export.keras_layers import check_layers
from charjax.export.weights import KERAS_GATES, Arrays, import_extra, reorder
from charjax.runtime.safetensors import read_file

_MAX_CONFIG_BYTES = 16 * 2**20
_MAX_ENTRIES = 10**4  # groups and arrays of an HDF5 file
_NOT_WEIGHTS = re.compile(
    r"(optimizer|compile_metrics|metrics|loss_tracker)/.*|.*/seed_generator.*"
)
_CELL = re.compile(r"(?P<layer>.*)/cell/vars/[012]")


def read_keras(file: Path) -> ForeignModel:
    """The model in a file. The layers that a `.keras` file also describes are checked.

    Raises:
      InputError: the file is damaged, charjax has no such model, or h5py is not installed.
      OSError: it cannot be read.
    """
    h5py = import_extra("h5py", extra="export")
    content, are_layers_checked = read_file(file), False
    if zipfile.is_zipfile(io.BytesIO(content)):
        content, are_layers_checked = _unpack(content, file)
    with _as_input_errors(file), h5py.File(io.BytesIO(content), "r") as opened:
        arrays = _collect(h5py, opened, len(content))
    arrays = {name: a for name, a in arrays.items() if not _NOT_WEIGHTS.fullmatch(name)}
    model = _model({name: as_float32(name, array) for name, array in arrays.items()})
    return model._replace(are_layers_checked=are_layers_checked)


def _unpack(content: bytes, file: Path) -> tuple[bytes, bool]:
    """(the weights in a `.keras` archive, whether it describes its layers, which are checked)."""
    with _as_input_errors(file), zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if not {"config.json", "model.weights.h5"} <= members.keys():
            raise InputError(
                f"{file}: has no config.json and model.weights.h5; not a Keras 3 model"
            )
        for name in ("config.json", "model.weights.h5"):
            limit = _MAX_CONFIG_BYTES if name == "config.json" else 20 * len(content)
            if members[name].file_size > limit:
                raise InputError(f"{file}: {name} is too large")
        is_described = check_layers(json.loads(archive.read("config.json")))
        return archive.read("model.weights.h5"), is_described


def _collect(h5py: Any, file: Any, limit: int) -> Arrays:
    """All arrays by path. Links are refused, and more than `limit` bytes in total."""
    arrays: Arrays = {}
    groups, num_entries = [("", file)], 0
    while groups:
        path, group = groups.pop()
        for name in group:
            num_entries += 1
            if num_entries > _MAX_ENTRIES:
                raise InputError(f"it has more than {_MAX_ENTRIES} groups and arrays")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"{path}{name[:60]}: is a link")
            item = group[name]
            if isinstance(item, h5py.Group):
                groups.append((f"{path}{name}/", item))
                continue
            limit -= item.nbytes
            is_plain = not (item.external or item.is_virtual or item.compression)
            if not is_plain or item.dtype.kind not in "fiu" or limit < 0:
                raise InputError(f"{path}{name[:60]}: is not stored as Keras stores an array")
            arrays[path + name] = np.asarray(item[()])
    return arrays


def _model(arrays: Arrays) -> ForeignModel:
    """The model of arrays such as `layers/gru/cell/vars/0`, `layers/dense/vars/1`."""
    names = {match["layer"] for match in map(_CELL.fullmatch, arrays) if match}
    if not names:
        raise InputError(
            "no GRU, LSTM or SimpleRNN: the file has no .../cell/vars/0; save it with Keras 3 by "
            "model.save_weights('NAME.weights.h5')"
        )
    _check_places(names)
    cells = {_cell(arrays, name) for name in names}
    if len(cells) > 1:
        raise InputError(
            f"has layers of {' and '.join(sorted(cells))}; charjax has one cell a model"
        )
    (cell,) = cells
    layers = [_layer(arrays, name, cell) for name in in_order(names)]
    used = {f"{name}/cell/vars/{i}" for name in names for i in range(3)}
    others = {name: array for name, array in arrays.items() if name not in used}
    has_bias = {
        name: f"{name[:-1]}1" in others
        for name, array in others.items()
        if name.endswith("vars/0") and array.ndim == 2
    }
    embedding, head = embedding_and_head(has_bias)
    bias = f"{head[:-1]}1"
    check_all_used(others, {head, bias} | ({embedding} if embedding else set()), "the file has")
    zeros = np.zeros(others[head].shape[1], np.float32)
    table = others[embedding] if embedding else None
    return ForeignModel(cell, tuple(layers), table, others[head], others.get(bias, zeros))


def _check_places(names: Iterable[str]) -> None:
    """Raises InputError for bidirectional layers, and for layers whose order their names hide."""
    for name in names:
        if re.search(r"(forward|backward)_layer", name):
            raise InputError(f"{name}: a bidirectional layer reads the text it is to predict")
    places = sorted({re.sub(r"_?\d+", "", name.rpartition("/")[0]) for name in names})
    if len(places) > 1:
        raise InputError(
            f"the recurrent layers are in {' and '.join(places)}: the names of a model and of one "
            "within it do not tell their order; save one model of all layers"
        )


def _cell(arrays: Arrays, layer: str) -> str:
    kernels = [arrays.get(f"{layer}/cell/vars/{i}") for i in (0, 1)]
    if any(kernel is None or kernel.ndim != 2 for kernel in kernels):
        raise InputError(f"{layer}: does not have two kernels")
    assert kernels[1] is not None
    return cell_of(kernels[1], layer)


def _layer(arrays: Arrays, name: str, cell: str) -> ForeignLayer:
    kernel, recurrent = (arrays[f"{name}/cell/vars/{i}"] for i in (0, 1))
    gates = recurrent.shape[1]
    biases = arrays.get(f"{name}/cell/vars/2", np.zeros((2, gates), np.float32))
    if cell == "gru" and biases.ndim == 1:
        raise InputError(
            f"{name}: a GRU with reset_after=False, whose reset gate comes before the matmul; "
            "charjax only has reset_after=True"
        )
    if biases.ndim == 1:
        biases = np.stack([biases, np.zeros_like(biases)])
    if biases.shape != (2, gates):
        raise InputError(f"{name}: its bias is {[*biases.shape]}, not {[2, gates]}")
    parts = (reorder(part, KERAS_GATES[cell]) for part in (kernel, recurrent, *biases))
    return ForeignLayer(*parts)


@contextlib.contextmanager
def _as_input_errors(file: Path) -> Iterator[None]:
    """Turns errors of reading into InputErrors; h5py has no error type for damage."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(
            f"{file}: damaged, or not a file of Keras 3 ({type(error).__name__}: {reason})"
        ) from None
