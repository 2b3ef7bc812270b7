"""Export as weights of a torch module, and a script with the module."""

from __future__ import annotations

from charjax.export.weights import safetensors, torch_weights
from charjax.inference.load import TrainedModel


def torch_files(trained: TrainedModel) -> dict[str, bytes]:
    """`model.safetensors` and `model.py`, the module that loads it."""
    config = trained.config.model
    arrays = torch_weights(config, trained.params)
    vocab, embed = arrays["embedding.weight"].shape
    module = _MODULE.format(
        vocab=vocab,
        embed=embed,
        hidden=config.hidden,
        layers=config.layers,
        rnn=config.cell.upper(),
    )
    return {
        "model.safetensors": safetensors(arrays, {"format": "pt"}),
        "model.py": module.encode(),
    }


_MODULE = '''\
"""A character model of charjax as a torch module: `model = load()`."""

from pathlib import Path

from safetensors.torch import load_file
from torch import nn


class CharRNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding({vocab}, {embed})
        self.rnn = nn.{rnn}({embed}, {hidden}, num_layers={layers}, batch_first=True)
        self.head = nn.Linear({hidden}, {vocab})

    def forward(self, tokens, carry=None):
        outputs, carry = self.rnn(self.embedding(tokens), carry)
        return self.head(outputs), carry


def load():
    model = CharRNN()
    model.load_state_dict(load_file(Path(__file__).with_name("model.safetensors")))
    return model.eval()
'''
