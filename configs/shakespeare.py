"""Tiny Shakespeare: the best model that two CPU cores train in ten minutes.

    python launch.py --config=configs/shakespeare.py

README has the time and the validation loss that it reaches, docs/quality.md how it was chosen.
"""

from ml_collections import ConfigDict

from charjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, to_config_dict


def get_config() -> ConfigDict:
    return to_config_dict(
        Config(
            data=DataConfig(
                corpus="shakespeare",
                # If the corpus can be neither found nor downloaded, the run says so and
                # trains on Python's language reference instead. With "" it stops with exit code 4.
                offline="python_docs",
                batch_size=32,
                seq_len=64,
            ),
            # auto: bfloat16 matmuls if these devices run them faster, else float32; the loss
            # is the same within the noise between seeds (docs/performance.md).
            model=ModelConfig(cell="lstm", hidden=512, embed=128, dropout=0.4, dtype="auto"),
            optim=OptimConfig(
                name="adamw",
                learning_rate=1.2e-2,
                b2=0.99,
                weight_decay=0.3,
                schedule="linear",
                warmup=0.1,
                final=0.01,
                clip_norm=1.0,
                ema=0.999,
            ),
            train=TrainConfig(max_steps=10000, eval_every=1000, log_every=50),
        )
    )
