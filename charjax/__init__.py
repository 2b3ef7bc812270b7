"""charjax: character-level recurrent language models in JAX.

The pieces that a training loop of one's own is made of. Each is imported when it
is first asked for, so that `import charjax` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charjax.checkpoint import Checkpoints as Checkpoints
    from charjax.config import Config as Config
    from charjax.config import DataConfig as DataConfig
    from charjax.config import ModelConfig as ModelConfig
    from charjax.config import OptimConfig as OptimConfig
    from charjax.config import TrainConfig as TrainConfig
    from charjax.data.batches import Batch as Batch
    from charjax.data.batches import make_batches as make_batches
    from charjax.data.batches import split as split
    from charjax.data.dataset import load_dataset as load_dataset
    from charjax.data.vocab import Vocab as Vocab
    from charjax.inference.load import load_trained as load_trained
    from charjax.inference.sampling import Sampling as Sampling
    from charjax.inference.score import char_nats as char_nats
    from charjax.inference.score import score as score
    from charjax.inference.texts import Sampler as Sampler
    from charjax.inference.texts import sample as sample
    from charjax.inference.texts import sample_texts as sample_texts
    from charjax.model.likelihood import next_char_nats as next_char_nats
    from charjax.model.network import CharRNN as CharRNN
    from charjax.model.network import init_params as init_params
    from charjax.model.network import initial_carry as initial_carry
    from charjax.runtime.dtypes import resolve_dtype as resolve_dtype
    from charjax.train.loop import train as train
    from charjax.train.optimizer import make_optimizer as make_optimizer
    from charjax.train.step import TrainState as TrainState
    from charjax.train.step import init_state as init_state
    from charjax.train.step import make_step as make_step

_HOME = {
    "charjax.checkpoint": ("Checkpoints",),
    "charjax.config": ("Config", "DataConfig", "ModelConfig", "OptimConfig", "TrainConfig"),
    "charjax.data.batches": ("Batch", "make_batches", "split"),
    "charjax.data.dataset": ("prepare",),
    "charjax.data.vocab": ("Vocab",),
    "charjax.inference.sampling": ("Sampling",),
    "charjax.inference.texts": ("Sampler", "sample", "sample_texts"),
    "charjax.inference.score": ("char_nats", "score"),
    "charjax.inference.load": ("load_trained",),
    "charjax.model.likelihood": ("next_char_nats",),
    "charjax.model.network": ("CharRNN", "init_params", "initial_carry"),
    "charjax.runtime.dtypes": ("settle",),
    "charjax.train.loop": ("train",),
    "charjax.train.optimizer": ("make_optimizer",),
    "charjax.train.step": ("TrainState", "init_state", "make_step"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'charjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
