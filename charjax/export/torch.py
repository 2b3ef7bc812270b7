"""Export as weights of a torch module, and a script with the module."""

from __future__ import annotations

import numpy as np

from charjax.config import ModelConfig
from charjax.export.foreign import embedding, foreign_layers
from charjax.export.weights import token_files
from charjax.inference.load import TrainedModel
from charjax.runtime.safetensors import Arrays, safetensors_file
from charjax.types import PyTree

# torch's order of gates is charjax's: reset, update, candidate; input, forget, candidate, output.
GATES = {"gru": (0, 1, 2), "lstm": (0, 1, 2, 3), "rnn": (0,)}


def torch_files(trained: TrainedModel) -> dict[str, bytes]:
    """`model.safetensors`, `model.py`, the module that loads it, and the files of tokens."""
    config = trained.config.model
    arrays = torch_weights(config, trained.params)
    vocab, embed = arrays["embedding.weight"].shape
    module = _MODULE.format(vocab=vocab, embed=embed, config=config, rnn=config.cell.upper())
    return {
        "model.safetensors": safetensors_file(arrays, {"format": "pt"}),
        "model.py": module.encode(),
        **token_files(trained.vocab),
    }


def torch_weights(config: ModelConfig, params: PyTree) -> Arrays:
    """The state dict of {embedding: nn.Embedding, rnn: nn.GRU, nn.LSTM or nn.RNN, head: nn.Linear}.

    torch's kernels are transposed.
    """
    arrays = {"embedding.weight": embedding(config, params)}
    for i, layer in enumerate(foreign_layers(config, params, GATES)):
        arrays[f"rnn.weight_ih_l{i}"] = layer.kernel.T
        arrays[f"rnn.weight_hh_l{i}"] = layer.recurrent_kernel.T
        arrays[f"rnn.bias_ih_l{i}"] = layer.bias
        arrays[f"rnn.bias_hh_l{i}"] = layer.hidden_bias
    arrays["head.weight"] = np.asarray(params["output_kernel"]).T
    arrays["head.bias"] = np.asarray(params["output_bias"])
    return arrays


_MODULE = '''\
"""A character model of charjax as a torch module: `model = load()`."""

from pathlib import Path

from safetensors.torch import load_file
from torch import nn


class CharRNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding({vocab}, {embed})
        self.rnn = nn.{rnn}({embed}, {config.hidden}, num_layers={config.layers}, batch_first=True)
        self.head = nn.Linear({config.hidden}, {vocab})

    def forward(self, tokens, carry=None):
        outputs, carry = self.rnn(self.embedding(tokens), carry)
        return self.head(outputs), carry


def load():
    model = CharRNN()
    model.load_state_dict(load_file(Path(__file__).with_name("model.safetensors")))
    return model.eval()
'''
