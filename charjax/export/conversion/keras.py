"""Reads the weights of a Keras 3 model, `.weights.h5` or `.keras`, without TensorFlow."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from charjax.errors import InputError
from charjax.export.conversion.arrays import (
    ConvertedModel,
    as_input_errors,
    cell_of,
    model_of,
    shown,
    split_layers,
)
from charjax.export.conversion.keras_layers import check_layers
from charjax.export.foreign import ForeignLayer
from charjax.export.keras import GATES
from charjax.export.weights import import_extra
from charjax.runtime.files import read_linked
from charjax.runtime.safetensors import Arrays, float32_weights

_MAX_CONFIG_BYTES = 16 * 2**20
_NOT_WEIGHTS = re.compile(
    r"(.*/)?(optimizer|compile_metrics|metrics|loss_tracker)/.*|.*/seed_generator.*"
)
ONE_FILE = "save one file with Keras 3, by model.save_weights('NAME.weights.h5')"
# layers/gru/cell/vars/0; layers/rnn/cell/cells/gru_cell/vars/0 of a layer of stacked cells.
_PART = re.compile(r"(?P<layer>.*)/cell(?P<number>/cells/\w+)?/vars/(?P<part>[012])")


def read_keras(file: Path) -> ConvertedModel:
    """The model in a file. The layers that a `.keras` file also describes are checked.

    Raises:
      InputError: the file is damaged, charjax has no such model, or h5py is not installed.
      OSError: it cannot be read.
    """
    h5py = import_extra("h5py")
    content, are_layers_checked = read_linked(file), False
    if file.name.endswith(".weights.json"):
        raise InputError(f"the index of weights in shards; {ONE_FILE}")
    with as_input_errors(f"damaged, or not a file of Keras 3; {ONE_FILE}"):
        if zipfile.is_zipfile(io.BytesIO(content)):
            content, are_layers_checked = _unpack(content)
        with h5py.File(io.BytesIO(content), "r") as opened:
            arrays = _collect(h5py, opened, len(content))
    arrays = {name: a for name, a in arrays.items() if not _NOT_WEIGHTS.fullmatch(name)}
    layers, others = split_layers(float32_weights(arrays), _PART)
    if not layers:
        raise InputError(f"no GRU, LSTM or SimpleRNN: the file has no .../cell/vars/0; {ONE_FILE}")
    _check_places(layers)
    model = model_of(
        {name: _layer(name, parts) for name, parts in layers.items()},
        others,
        suffixes=("vars/0", "vars/1"),
        is_transposed=False,
        orders=GATES,
    )
    return model._replace(are_layers_checked=are_layers_checked)


def _unpack(content: bytes) -> tuple[bytes, bool]:
    """(the weights in a `.keras` archive, whether it describes its layers, which are checked)."""
    limits = {"config.json": _MAX_CONFIG_BYTES, "model.weights.h5": 20 * len(content)}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        for name, limit in limits.items():
            if name not in sizes:
                raise InputError(f"has no {name}; not a Keras 3 model")
            if sizes[name] > limit:
                raise InputError(f"{name} is too large")
        is_described = check_layers(json.loads(archive.read("config.json")))
        return archive.read("model.weights.h5"), is_described


def _collect(h5py: Any, file: Any, limit: int) -> Arrays:
    """All arrays by path. Links are refused, and more than `limit` bytes in total."""
    arrays: Arrays = {}
    links: list[tuple[str, Any]] = []
    file.visititems_links(lambda path, link: links.append((path, link)))
    for path, link in links:
        if not isinstance(link, h5py.HardLink):
            raise InputError(f"{path[:80]}: is a link")
        item = file[path]
        if isinstance(item, h5py.Group):
            continue
        limit -= item.nbytes
        is_plain = not (item.external or item.is_virtual or item.compression)
        # HDF5 has no such type: Keras writes pairs of bytes, and an attribute that says what.
        is_bfloat16 = item.dtype == "V2" and item.attrs.get("dtype") == "bfloat16"
        if not is_plain or not (is_bfloat16 or item.dtype.kind in "fiu") or limit < 0:
            raise InputError(f"{path[:80]}: is not stored as Keras stores an array")
        array = np.asarray(item[()])
        arrays[path] = array.view(ml_dtypes.bfloat16).astype("f4") if is_bfloat16 else array
    return arrays


def _check_places(names: Iterable[str]) -> None:
    """Raises InputError for bidirectional layers, and for layers whose order their names hide."""
    for name in names:
        if re.search(r"(forward|backward)_layer", name):
            raise InputError(f"{name}: a bidirectional layer reads the text it is to predict")
    unnumbered = [re.sub(r"_?\d+", "", name).rpartition("/") for name in names]
    places, kinds = {place for place, _, _ in unnumbered}, {kind for _, _, kind in unnumbered}
    if len(places) > 1 or (len(kinds) > 1 and "rnn" in kinds):
        raise InputError(
            f"the recurrent layers are {shown(names)}: the names do not tell their order; save one "
            "Sequential model of all layers, the recurrent ones of one class"
        )


def _layer(name: str, parts: Arrays) -> ForeignLayer:
    if not {"0", "1"} <= parts.keys():
        raise InputError(f"{name}: does not have two kernels, as in a shard; {ONE_FILE}")
    bias = parts.get("2", np.zeros((2, *parts["1"].shape[1:]), np.float32))
    if bias.ndim == 2 and len(bias) == 2:
        return ForeignLayer(parts["0"], parts["1"], *bias)
    layer = ForeignLayer(parts["0"], parts["1"], bias, np.zeros_like(bias))
    if cell_of(name, layer) == "gru":
        raise InputError(
            f"{name}: a GRU with reset_after=False, whose reset gate comes before the matmul; "
            "charjax only has reset_after=True"
        )
    return layer
