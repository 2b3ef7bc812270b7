"""Export as an ONNX graph: Gather, then GRU, LSTM or RNN nodes, then the projection to logits.

The graph takes a carry and tokens of any batch size and length: one token at a time for sampling,
a whole sequence for scoring.
"""

from __future__ import annotations

import json

import numpy as np

from charjax.config import CELL_SIZES, ModelConfig, to_dict
from charjax.export.files import SIGNATURE
from charjax.export.foreign import embedding, foreign_layers
from charjax.export.weights import import_extra, sampling_json, vocabulary_json
from charjax.inference.load import TrainedModel
from charjax.runtime.safetensors import Arrays
from charjax.types import PyTree

# Order of gates: GRU in ONNX has update, reset, candidate; LSTM input, output, forget, candidate.
_GATES = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2), "rnn": (0,)}


def onnx_model(trained: TrainedModel) -> bytes:
    """The serialized graph.

    Inputs: `tokens` int64 [batch, time] and the carry, float32 [1, batch, hidden] arrays
    `layer_0_h` (and `layer_0_c` for LSTM) and so on. Outputs: `logits` float32
    [batch, time, vocab] and the carry after the last token, `layer_0_h_out` and so on.
    The metadata has the vocabulary and what sampling needs.

    Raises:
      InputError: the package onnx is not installed.
    """
    onnx = import_extra("onnx")
    config, params = trained.config.model, trained.params
    model = onnx.parser.parse_model(_text(config, vocab_size=params["output_bias"].shape[0]))
    for name, array in _constants(config, params).items():
        constant = onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        model.graph.initializer.append(constant)
    metadata = {
        "config": json.dumps(to_dict(trained.config)),
        "vocabulary": vocabulary_json(trained.vocab),
        "sampling": sampling_json(trained.vocab),
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    serialized: bytes = model.SerializeToString()
    return serialized


def _text(config: ModelConfig, vocab_size: int) -> str:
    """The graph without its constants, in ONNX's syntax."""
    carry, layers = [], []
    for i in range(config.layers):
        states = [f"layer_{i}_h", f"layer_{i}_c"][: CELL_SIZES[config.cell].states]
        carry += [f"float[1, batch, {config.hidden}] {state}" for state in states]
        layers.append(
            _LAYER.format(
                i=i,
                op=config.cell.upper(),
                hidden=config.hidden,
                reset=", linear_before_reset = 1" if config.cell == "gru" else "",
                inputs=f"layer_{i - 1}_sequence" if i else "embed",
                before=", ".join(states),
                after=", ".join(f"{state}_out" for state in states),
            )
        )
    return _GRAPH.format(
        signature=SIGNATURE,
        cell=config.cell,
        before=", ".join(carry),
        after=", ".join(f"{state}_out" for state in carry),
        vocab=vocab_size,
        layers="".join(layers),
        last=config.layers - 1,
    )


# onnxruntime reads IR version 10 from 1.18 on.
_GRAPH = """\
<ir_version: 10, opset_import: ["" : 17], producer_name: "{signature}">
{cell} (int64[batch, time] tokens, {before}) => (float[batch, time, {vocab}] logits, {after}) {{
  time_major = Transpose <perm = [1, 0]> (tokens)
  embed = Gather (embedding, time_major)
{layers}
  batch_major = Transpose <perm = [1, 0, 2]> (layer_{last}_sequence)
  unbiased = MatMul (batch_major, output_kernel)
  logits = Add (unbiased, output_bias)
}}
"""
# Between bias and carry: the input of lengths, which is left out, as all sequences have the same.
_LAYER = """
  layer_{i}_outputs, {after} = {op} <hidden_size = {hidden}{reset}> (
    {inputs}, layer_{i}_kernel, layer_{i}_recurrent_kernel, layer_{i}_bias, , {before})
  layer_{i}_sequence = Squeeze (layer_{i}_outputs, layer_{i}_direction)
"""


def _constants(config: ModelConfig, params: PyTree) -> Arrays:
    arrays = {"embedding": embedding(config, params)}
    for i, layer in enumerate(foreign_layers(config, params, _GATES)):
        arrays |= {
            f"layer_{i}_kernel": layer.kernel.T[None],
            f"layer_{i}_recurrent_kernel": layer.recurrent_kernel.T[None],
            f"layer_{i}_bias": np.concatenate([layer.bias, layer.hidden_bias])[None],
            f"layer_{i}_direction": np.array([1], np.int64),
        }
    arrays["output_kernel"] = np.asarray(params["output_kernel"])
    return arrays | {"output_bias": np.asarray(params["output_bias"])}
