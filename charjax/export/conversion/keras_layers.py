"""Checks that charjax computes each layer as the description in a `.keras` file says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from charjax.errors import InputError

# Layers whose fields do not matter here: they hold other layers, or change nothing after training.
_UNCHECKED_LAYERS = (
    *("InputLayer", "TimeDistributed", "StackedRNNCells"),
    *("Dropout", "SpatialDropout1D", "GaussianDropout", "GaussianNoise", "ActivityRegularization"),
)
# The values that the fields of other layers must have.
_GATED_FIELDS = {"activation": "tanh", "recurrent_activation": "sigmoid"}
_CELL_FIELDS: dict[str, dict[str, Any]] = {
    "GRU": _GATED_FIELDS | {"reset_after": True},
    "LSTM": _GATED_FIELDS,
    "SimpleRNN": {"activation": "tanh"},
}
_LAYER_FIELDS: dict[str, dict[str, Any]] = {
    **{kind: fields | {"go_backwards": False} for kind, fields in _CELL_FIELDS.items()},
    **{f"{kind}Cell": fields for kind, fields in _CELL_FIELDS.items()},
    "RNN": {"go_backwards": False},
    "Embedding": {"mask_zero": False},
    "Dense": {"activation": ("linear", "softmax")},
    "Activation": {"activation": ("linear", "softmax")},
    "Softmax": {"axis": -1},
}


def check_layers(config: Any) -> bool:
    """Whether the config of a model describes its layers, which are checked.

    That of a model of the user's class does not.

    Args:
      config: the JSON values of `config.json`.

    Raises:
      InputError: charjax computes a layer differently or not at all, or the layers are no chain.
      Exception: of another kind, where the values are not those of a model of Keras.
    """
    if "layers" not in config["config"]:
        return False
    layers = list(_layers(config))
    for kind, fields in layers:
        _check_layer(kind, fields)
    for kind, fields in layers[:-1]:
        if kind == "Softmax" or fields.get("activation") == "softmax":
            raise InputError(f"a softmax, of the class {kind}, comes before the last layer")
    return True


def _layers(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(class, fields) of a layer and of the layers or cells in it, or of every layer of a model."""
    fields = values["config"]
    if "layers" in fields:
        _check_chain(fields["layers"])
        for layer in fields["layers"]:
            yield from _layers(layer)
        return
    yield str(values["class_name"]), fields
    inner = [fields[name] for name in ("layer", "cell") if name in fields]
    for layer in [*inner, *fields.get("cells", ())]:
        yield from _layers(layer)


def _check_chain(layers: list[Any]) -> None:
    """Raises InputError unless each layer of a functional model reads the one before, once."""
    inputs = [layer.get("name") for layer in layers if layer.get("class_name") == "InputLayer"]
    before: list[tuple[str, int]] = []  # the output that the next layer must read
    for layer in layers:
        calls, name = layer.get("inbound_nodes"), layer.get("name")
        if calls is None or name in inputs:  # None: of a Sequential model
            continue
        read = [tensor for tensor in _tensors(calls) if tensor[0] not in inputs]
        if len(calls) != 1 or read != before:
            raise InputError(
                f"the layer {str(name)[:40]} must read the layer before it, once, and nothing "
                "else: charjax's layers are a chain"
            )
        before = [(name, 0)]


def _tensors(calls: Any) -> Iterator[tuple[str, int]]:
    """(layer, output) of each tensor in calls, which is [layer, number of its call, output]."""
    match calls:
        case [str(layer), int(), int(output), *more]:
            yield layer, output
            yield from _tensors(more)
        case list() | dict():
            for value in calls.values() if isinstance(calls, dict) else calls:
                yield from _tensors(value)


def _check_layer(kind: str, fields: dict[str, Any]) -> None:
    """Raises InputError for a layer that charjax computes differently, or not at all."""
    if kind in _UNCHECKED_LAYERS:
        return
    if kind not in _LAYER_FIELDS:
        raise InputError(f"has a layer of class {kind[:40]}, which charjax's model does not have")
    for name, wanted in _LAYER_FIELDS[kind].items():
        choices = wanted if isinstance(wanted, tuple) else (wanted,)
        if fields.get(name, choices[0]) not in choices:
            raise InputError(
                f"a layer of class {kind} has {name}={fields[name]!r}; charjax only has "
                f"{choices[0]!r}"
            )
