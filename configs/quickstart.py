"""Quickstart: a small model on a laptop, with nothing to download.

    python launch.py --config=configs/quickstart.py

Text:     python_docs, the language reference that comes with CPython.
Model:    one GRU layer of 256 units.
Time:     about a minute on two CPU cores.
Loss:     README has the validation loss that it reaches.
"""

from ml_collections import ConfigDict

from charjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, to_config_dict


def get_config() -> ConfigDict:
    return to_config_dict(
        Config(
            data=DataConfig(corpus="python_docs", batch_size=32, seq_len=64),
            model=ModelConfig(cell="gru", hidden=256, embed=64, dropout=0.1),
            optim=OptimConfig(
                name="adamw", learning_rate=4e-3, schedule="linear", warmup=0.1, ema=0.998
            ),
            train=TrainConfig(max_steps=1500, eval_every=300),
        )
    )
