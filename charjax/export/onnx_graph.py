"""Export as an ONNX graph: Gather, then GRU, LSTM or RNN nodes, then the projection to logits.

The graph takes a carry and tokens of any batch size and length: one token at a time for sampling,
a whole sequence for scoring.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from charjax.config import ModelConfig, to_dict
from charjax.export.files import SIGNATURE
from charjax.export.weights import (
    embedding,
    hidden_bias,
    import_extra,
    reorder,
    sampling_metadata,
    vocabulary_metadata,
)
from charjax.inference.load import TrainedModel
from charjax.types import PyTree

_OPSET, _IR_VERSION = 17, 10  # onnxruntime reads IR version 10 from 1.18 on
# Order of gates: GRU in ONNX has update, reset, candidate; LSTM input, output, forget, candidate.
_GATES = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2), "rnn": (0,)}
_ATTRIBUTES: dict[str, dict[str, Any]] = {"gru": {"linear_before_reset": 1}, "lstm": {}, "rnn": {}}


def onnx_model(trained: TrainedModel) -> bytes:
    """The serialized graph.

    Inputs: `tokens` int64 [batch, time] and the carry, float32 [1, batch, hidden] arrays
    `layer_0_h` (and `layer_0_c` for LSTM) and so on. Outputs: `logits` float32
    [batch, time, vocab] and the carry after the last token, `layer_0_h_out` and so on.
    The metadata has the vocabulary and what sampling needs.

    Raises:
      InputError: the package onnx is not installed.
    """
    onnx = import_extra("onnx", extra="export")
    config, params = trained.config.model, trained.params
    graph = _Graph(onnx)
    vocab = params["output_bias"].shape[0]
    graph.input("tokens", np.int64, ["batch", "time"])
    graph.output("logits", ["batch", "time", vocab])
    x = graph.node("Transpose", ["tokens"], "time_major", perm=[1, 0])
    x = graph.node("Gather", [graph.constant("embedding", embedding(config, params)), x], "embed")
    for i in range(config.layers):
        x = _layer(graph, config, params[f"layer_{i}"], i, x)
    x = graph.node("Transpose", [x], "batch_major", perm=[1, 0, 2])
    kernel = graph.constant("output_kernel", np.asarray(params["output_kernel"]))
    x = graph.node("MatMul", [x, kernel], "unbiased")
    graph.node(
        "Add", [x, graph.constant("output_bias", np.asarray(params["output_bias"]))], "logits"
    )
    model = graph.model(config.cell)
    onnx.helper.set_model_props(model, _metadata(trained))
    onnx.checker.check_model(model, full_check=True)
    serialized: bytes = model.SerializeToString()
    return serialized


def _layer(graph: _Graph, config: ModelConfig, layer: PyTree, i: int, x: str) -> str:
    """One recurrent node; returns the name of its outputs [time, batch, hidden]."""
    order, hidden = _GATES[config.cell], config.hidden

    def constant(name: str, array: np.ndarray) -> str:
        return graph.constant(f"layer_{i}_{name}", reorder(array, order).T[None])

    bias = [reorder(b, order) for b in (np.asarray(layer["bias"]), hidden_bias(layer))]
    states = [f"layer_{i}_h", f"layer_{i}_c"][: 2 if config.cell == "lstm" else 1]
    for state in states:
        graph.input(state, np.float32, [1, "batch", hidden])
    outputs = graph.node(
        config.cell.upper(),
        [
            x,
            constant("kernel", np.asarray(layer["kernel"])),
            constant("recurrent_kernel", np.asarray(layer["recurrent"]["kernel"])),
            graph.constant(f"layer_{i}_bias", np.concatenate(bias)[None]),
            "",  # all sequences have the same length
            *states,
        ],
        f"layer_{i}_outputs",
        *(f"{state}_out" for state in states),
        hidden_size=hidden,
        **_ATTRIBUTES[config.cell],
    )
    for state in states:
        graph.output(f"{state}_out", [1, "batch", hidden])
    axis = graph.constant(f"layer_{i}_direction", np.array([1], np.int64))
    return graph.node("Squeeze", [outputs, axis], f"layer_{i}_sequence")


class _Graph:
    """Builder of an ONNX graph: collects its inputs, nodes, constants and outputs."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._constants: list[Any] = []

    def input(self, name: str, dtype: type[np.generic], shape: list[Any]) -> None:
        self._inputs.append(self._value_info(name, dtype, shape))

    def output(self, name: str, shape: list[Any]) -> None:
        self._outputs.append(self._value_info(name, np.float32, shape))

    def constant(self, name: str, array: np.ndarray) -> str:
        contiguous = np.ascontiguousarray(array)
        self._constants.append(self._onnx.numpy_helper.from_array(contiguous, name))
        return name

    def node(self, op: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """Adds a node; returns its first output."""
        self._nodes.append(self._onnx.helper.make_node(op, inputs, outputs, **attributes))
        return outputs[0]

    def model(self, name: str) -> Any:
        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._constants)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name=SIGNATURE,
        )

    def _value_info(self, name: str, dtype: type[np.generic], shape: list[Any]) -> Any:
        helper = self._onnx.helper
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, element, shape)


def _metadata(trained: TrainedModel) -> dict[str, str]:
    """Config, vocabulary, and what a program needs to sample as charjax does."""
    return {
        "config": json.dumps(to_dict(trained.config)),
        "vocabulary": json.dumps(vocabulary_metadata(trained.vocab)),
        "sampling": json.dumps(sampling_metadata(trained.vocab)),
    }
