"""The built-in model: what `charjax sample` without `--workdir` writes with.

    python launch.py --config=configs/builtin.py
    charjax export --workdir=runs/builtin --format=hub --weights=bfloat16 --out=hub

`charjax/builtin/` has the files of `hub`, without `model.onnx` and the list of files.

Text:     tiny Shakespeare, which is in the public domain.
Model:    one GRU layer of 256 units, half a megabyte in bfloat16.
"""

from ml_collections import ConfigDict

from charjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, to_config_dict


def get_config() -> ConfigDict:
    return to_config_dict(
        Config(
            data=DataConfig(corpus="shakespeare", batch_size=32, seq_len=64),
            model=ModelConfig(cell="gru", hidden=256, embed=64, dropout=0.1),
            optim=OptimConfig(
                name="adamw",
                learning_rate=5e-3,
                b2=0.99,
                weight_decay=0.02,
                schedule="linear",
                warmup=0.1,
                final=0.01,
                ema=0.998,
            ),
            train=TrainConfig(max_steps=7000, eval_every=1000),
        )
    )
